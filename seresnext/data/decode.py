"""From the bytes of an image file to RGB pixels, exactly as Pillow decodes them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from seresnext.data.jpeg import MOST_SCANS, has_many_scans
from seresnext.errors import DataError

# Names of files lie: ImageNet has a PNG called .JPEG. The content decides, among what an image folder may hold.
_FORMATS = ("JPEG", "PNG")


def decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Decode an image to RGB. EXIF rotation is not applied, as in the training of the published weights.

    Gray, palette, transparent and CMYK images become RGB as Pillow converts them; 16-bit gray keeps its high byte.
    Raises DataError naming the file for more than `max_pixels` pixels, before anything is decoded, and for bytes that
    are no whole image.
    """
    try:
        with warnings.catch_warnings():
            # Broken EXIF and odd transparency make Pillow warn; the pixels are not affected.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"{name} has {image.width} x {image.height} pixels, more than data.max_pixels ({max_pixels}); "
                    "remove the file or raise the limit"
                )
            if "progressive" in image.info and has_many_scans(data):
                raise DataError(f"{name} has more than {MOST_SCANS} scans, so it is no photograph; remove the file")
            return _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has more pixels than Pillow opens; remove the file ({error})") from None
    except (OSError, SyntaxError, ValueError, AssertionError) as error:  # An assertion of Pillow's: no palette.
        reason = str(error) or "damaged"
        what = "is empty" if not data else f"is no JPEG or PNG image that can be decoded ({reason})"
        raise DataError(f"{name} {what}; restore the file or remove it") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255.
        return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
