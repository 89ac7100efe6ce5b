"""From the bytes of an image file to RGB pixels, exactly as Pillow decodes them."""

from __future__ import annotations

import importlib
import io
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from seresnext.data.decode.jpeg import MOST_SCANS, has_many_scans, read_metadata
from seresnext.data.decode.kinds import kind_of, not_an_image
from seresnext.errors import DataError, Failure
from seresnext.process.packages import extra
from seresnext.recipe.schema import DataSection

_PNG = b"\x89PNG\r\n\x1a\n"
_TILE_WIDTH, _TILE_HEIGHT = 0x0142, 0x0143  # tags of TIFF
ORIENTATION, _SHORT = 0x0112, 3  # the tag of EXIF, and the type of the value
_TYPE_BYTES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8)  # by type of a value; 8 for unknown types, to be safe
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Parts of a PNG that change no pixel: texts and colour profile. Pillow unpacks at most a megabyte of each.
_METADATA = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))


@dataclass(frozen=True)
class Decoding:
    """How the bytes of an image file become RGB pixels.

    `exif_rotation`: turn the image as EXIF asks. `background`: the colour behind transparent pixels. None: transparent
    pixels get the colour that is stored for them, as Pillow converts to RGB.
    """

    max_pixels: int
    exif_rotation: bool = False
    background: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, data: DataSection) -> Decoding:
        """Return the decoding of a recipe."""
        return cls(data.max_pixels, data.exif_rotation, data.background)


def decode(data: bytes, name: str, decoding: Decoding) -> Image.Image:
    """Decode an image to RGB, the first frame or page of several.

    Gray, palette and CMYK images become RGB as Pillow converts them; 16-bit gray keeps its high byte. Pillow turns each
    TIFF by its orientation, and libheif each HEIC; other formats are turned only with `decoding.exif_rotation`.
    Raises DataError naming the file for more than `max_pixels` pixels, before the decode, and for a damaged image.
    """
    image, orientation = decode_as_stored(data, name, decoding)
    return turn(image, orientation)


def decode_as_stored(data: bytes, name: str, decoding: Decoding) -> tuple[Image.Image, int]:
    """Return an image as RGB before the turn, and the EXIF orientation of the turn, 1 to 8. Raises errors as `decode`.

    The orientation is 1 without `decoding.exif_rotation`.
    """
    # Names of files lie: ImageNet has a PNG called .JPEG. The content decides.
    kind = kind_of(data)
    if kind is None:
        raise not_an_image(data, name)
    try:
        # Broken EXIF and odd transparency make Pillow warn; the pixels are not affected.
        with warnings.catch_warnings(action="ignore"):
            try:
                return _decode(data, name, decoding)
            except ValueError:  # One cause is metadata that Pillow finds too large.
                without = _without_metadata(data)
                if without == data:
                    raise
                return _decode(without, name, decoding)
    except (Failure, MemoryError):
        raise
    except Exception as error:  # Damaged bytes lead Pillow to errors of a dozen kinds.
        reason = str(error) or "damaged"
        raise DataError(f"{name} is no {kind} image that can be decoded ({reason}); replace the file") from None


def is_gray(data: bytes) -> bool:
    """Return whether an image that `decode` takes has 8 bits of gray and nothing else."""
    with warnings.catch_warnings(action="ignore"):
        return open_image(_without_metadata(data)).mode == "L"


def open_image(data: bytes) -> ImageFile:
    """Open an image of a known kind and read the header, without a limit of pixels. Raises an exception of any type."""
    kind = kind_of(data)
    assert kind is not None
    return _plugin(kind)(io.BytesIO(data))


@cache
def _plugin(kind: str) -> type[ImageFile]:
    """Return Pillow's class of a format. `Image.open` has another limit of pixels, and hides why a class refused."""
    if kind == "HEIC":
        with extra("heic"):
            import pillow_heif
        pillow_heif.options.DECODE_THREADS = 1  # Each loader worker decodes.
        return pillow_heif.HeifImageFile
    name = kind if kind == "WebP" else kind.capitalize()  # such as PIL.BmpImagePlugin.BmpImageFile
    plugin = importlib.import_module(f"PIL.{name}ImagePlugin")
    if kind == "AVIF":
        plugin.DEFAULT_MAX_THREADS = 1  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(plugin, f"{name}ImageFile")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8. Broken EXIF and other values are 1. Pillow may warn."""
    try:
        # `PngImageFile.getexif` would decode the pixels, because EXIF may stand behind the pixels.
        orientation = Image.Image.getexif(image).get(ORIENTATION)
        return int(orientation) if orientation in _TURNS else 1
    except Exception:  # The pixels are good.
        return 1


def quick_orientation(data: bytes) -> int | None:
    """Return the EXIF orientation of a JPEG as cameras write it, in a tenth of Pillow's time. None: Pillow must decide.

    The layout is a directory of TIFF 6.0, section 2. As Pillow does, the search stops at an entry with data outside.
    """
    exif, has_xmp = read_metadata(data)
    without = None if has_xmp else 1  # XMP may have an orientation, too.
    if not exif:
        return without
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    with suppress(struct.error):
        place = struct.unpack_from(f"{order}L", exif, 4)[0]
        for entry in range(place + 2, place + 2 + 12 * struct.unpack_from(f"{order}H", exif, place)[0], 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHLH", exif, entry)
            if tag == ORIENTATION:
                return value if (kind, count) == (_SHORT, 1) and value in range(1, 9) else None
            size = count * _TYPE_BYTES[min(kind, len(_TYPE_BYTES) - 1)]
            if size > 4 and struct.unpack_from(f"{order}L", exif, entry + 8)[0] + size > len(exif):
                return None
        return without
    return None


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Return a stored image, turned and mirrored by its EXIF orientation, 1 to 8."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def is_transparent(image: Image.Image) -> bool:
    """Return whether an opened image has an alpha channel or a transparent colour. 16-bit gray counts as opaque."""
    has_color = "transparency" in image.info and not image.mode.startswith("I")
    return has_color or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def _decode(data: bytes, name: str, decoding: Decoding) -> tuple[Image.Image, int]:
    image = open_image(data)
    _check_size(name, image.width, image.height, decoding.max_pixels)
    if tags := getattr(image, "tag_v2", None):
        # libtiff decodes whole tiles, and a tile may be larger than the image.
        _check_size(name, tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1), decoding.max_pixels)
    if "progressive" in image.info and has_many_scans(data):
        raise DataError(f"{name} has more than {MOST_SCANS} scans, and no photograph has so many; remove the file")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    pixels = to_rgb(image, decoding.background)
    return pixels, orientation_of(image) if decoding.exif_rotation else 1


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {width} x {height} pixels, more than data.max_pixels ({max_pixels}); "
            "remove the file or raise the limit"
        )


def to_rgb(image: Image.Image, background: tuple[int, int, int] | None = None) -> Image.Image:
    """Return an image as RGB, as Pillow converts the image; 16-bit gray keeps the high byte.

    With `background`, transparent pixels are blended with this colour.
    """
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255.
        return Image.fromarray((np.asarray(image, np.int32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    rgb = image.convert("RGB")
    if background is None or not is_transparent(image):
        return rgb
    alpha = image.convert("RGBA").getchannel("A")
    return Image.composite(rgb, Image.new("RGB", image.size, background), alpha)


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without metadata; return other bytes unchanged."""
    if not data.startswith(_PNG):
        return data
    parts, position = [_PNG], len(_PNG)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] not in _METADATA:
            parts.append(data[position:end])
        position = end
    return b"".join(parts)
