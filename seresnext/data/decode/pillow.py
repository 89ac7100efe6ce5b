"""From the bytes of an image file to RGB pixels, exactly as Pillow decodes them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from seresnext.data.decode.jpeg import MOST_SCANS, has_many_scans
from seresnext.errors import DataError, Failure

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_IMAGES = (
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop image"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"<svg", "an SVG image"),
)
# Brands of the ISO base media format: bytes 8 to 12 of a file.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "an AVIF image"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC image"),
    b"crx ": "a camera's raw image (CR3)",
}
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"pk\3\4", "a zip archive"),
    (b"%pdf", "a PDF document"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML text"),
)
_LOOKED_AT = 512  # Bytes of a file that is no image.
# Parts of a PNG that change no pixel: texts, colour profile, EXIF. Pillow unpacks at most a megabyte of each.
_METADATA = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"))


def decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Decode an image to RGB. EXIF rotation is not applied, as in the training of the published weights.

    Gray, palette, transparent and CMYK images become RGB as Pillow converts them; 16-bit gray keeps its high byte.
    Raises DataError naming the file for more than `max_pixels` pixels, before the decode, and for a damaged image.
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
        raise DataError(f"{name} is no JPEG or PNG image that can be decoded ({reason}); replace the file") from None


def is_gray(data: bytes) -> bool:
    """Return whether an image that `decode` takes has 8 bits of gray and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_image(_without_metadata(data)).mode == "L"


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
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, as Pillow converts the image; 16-bit gray keeps the high byte."""
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255.
        return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without metadata; return other bytes unchanged."""
    if not data.startswith(PNG):
        return data
    parts, position = [PNG], len(PNG)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] not in _METADATA:
            parts.append(data[position:end])
        position = end
    return b"".join(parts)


def not_an_image(data: bytes, name: str) -> DataError:
    """Return the error for a file without the first bytes of a JPEG or PNG."""
    if not data:
        return DataError(f"{name} is empty; restore or remove the file")
    if image := _image(data):
        return DataError(f"{name} is {image}, not JPEG or PNG; convert or remove the file")
    return DataError(f"{name} is {_other(data[:_LOOKED_AT])}, no JPEG or PNG image; restore or remove the file")


def _image(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP image"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    return next((name for signature, name in _IMAGES if data.startswith(signature)), None)


def _other(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if found := next((name for signature, name in _OTHERS if start.startswith(signature)), None):
        return found
    if head[4:8] == b"ftyp":
        return "a video"
    if not any(head):
        return "zeros at the beginning"
    is_text = head.isascii() and all(one.isprintable() or one.isspace() for one in head.decode("latin-1"))
    return "a text" if is_text else "of an unknown kind"
