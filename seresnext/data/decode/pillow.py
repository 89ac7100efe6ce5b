"""From the bytes of an image file to RGB pixels, exactly as Pillow decodes them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from seresnext.data.decode.formats import JPEG, PNG, describe_format
from seresnext.data.decode.jpeg import MOST_SCANS, has_many_scans
from seresnext.errors import DataError, Failure

# Parts of a PNG that change no pixel: texts, colour profile, EXIF. Pillow unpacks at most a megabyte of each.
_METADATA = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"))


def decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Decode an image to RGB. EXIF rotation is not applied, as in the training of the published weights.

    Gray, palette, transparent and CMYK images become RGB as Pillow converts them; 16-bit gray keeps its high byte.
    Raises DataError naming the file for more than `max_pixels` pixels, before anything is decoded, and for bytes that
    are no whole image.
    """
    # Names of files lie: ImageNet has a PNG called .JPEG. The content decides.
    if not data.startswith((JPEG, PNG)):
        raise not_an_image(data, name)
    try:
        with warnings.catch_warnings():
            # Broken EXIF and odd transparency make Pillow warn; the pixels are not affected.
            warnings.simplefilter("ignore")
            try:
                return _decode(data, name, max_pixels)
            except ValueError:  # One cause is metadata that Pillow finds too large.
                without = _without_metadata(data)
                if without == data:
                    raise
                return _decode(without, name, max_pixels)
    except (Failure, MemoryError):
        raise
    except Exception as error:  # Damaged bytes lead Pillow to errors of a dozen kinds.
        reason = str(error) or "damaged"
        raise DataError(
            f"{name} is no JPEG or PNG image that can be decoded ({reason}); restore or remove the file"
        ) from None


def is_gray(data: bytes) -> bool:
    """Return whether an image that `decode` takes has 8 bits of gray and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_image(_without_metadata(data)).mode == "L"


def not_an_image(data: bytes, name: str) -> DataError:
    """Return the error for a file without the first bytes of a JPEG or PNG."""
    kind, fix = describe_format(data)
    return DataError(f"{name} {kind}; {fix}")


def open_image(data: bytes) -> JpegImageFile | PngImageFile:
    """Open a JPEG or PNG and read the header, without a limit of pixels. Raises an exception of any type."""
    # Image.open has another limit of pixels than data.max_pixels, and does not report why a plugin refused the image.
    return (PngImageFile if data.startswith(PNG) else JpegImageFile)(io.BytesIO(data))


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    image = open_image(data)
    if image.width * image.height > max_pixels:
        raise DataError(
            f"{name} has {image.width} x {image.height} pixels, more than data.max_pixels ({max_pixels}); "
            "remove the file or raise the limit"
        )
    if "progressive" in image.info and has_many_scans(data):
        raise DataError(f"{name} has more than {MOST_SCANS} scans, and no photograph has so many; remove the file")
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255.
        return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without metadata; return other bytes unchanged."""
    return PNG + b"".join(_pixel_chunks(data)) if data.startswith(PNG) else data


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    position = len(PNG)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] not in _METADATA:
            yield data[position:end]
        position = end
