"""The kind of a file by its bytes: an image that can be decoded, an image of another format, or anything else."""

import re
from importlib.util import find_spec

from seresnext.errors import DataError

HAS_HEIC = find_spec("pillow_heif") is not None  # whether the `heic` extra is installed
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif"),
}
"""The formats that are decoded, with the usual endings of files. The content decides, not the ending."""

# Each table has the beginning of the files of a kind, as a regular expression.
_FORMATS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WebP": rb"RIFF.{4}WEBP",
}
_BMP_HEADERS = frozenset((12, 16, 40, 52, 56, 64, 108, 124))  # Sizes, by version.
# Tags of a TIFF: a mark of small previews, and the version of DNG.
_SUBFILE, _DNG = 0x00FE, 0xC612
_OTHER_IMAGES = {
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "a Photoshop image": rb"8BPS",
    "an icon (ICO)": rb"\0\0\x01\0",
    "an SVG image": rb"<svg",
    "a camera's raw image": rb"FUJIFILMCCD-RAW|IIRO|IIU\0|.{4}ftypcrx ",
}
# Brands of the ISO base media format: bytes 8 to 12 of a file, then from 16 on.
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_OTHERS = {
    "a pointer of Git LFS, not the file": rb"version https://git-lfs",
    "a gzip archive": rb"\x1f\x8b",
    "a zip archive": rb"PK\x03\x04",
    "a RAR archive": rb"Rar!",
    "a 7z archive": rb"7z\xbc\xaf",
    "a video": rb"\x1aE\xdf\xa3|\0\0\x01\xba|.{4}ftyp|RIFF.{4}AVI ",
    "a PDF document": rb"%PDF",
    "an HTML page": rb"(?i:<!doctype html|<html)",
    "an XML text": rb"<\?xml",
}
_LOOKED_AT = 512  # Bytes of a file that is no image.


def kind_of(data: bytes) -> str | None:
    """Return the format of an image that can be decoded, a key of `ENDINGS`, else None. Raises nothing."""
    kind = _format(data)
    if (kind == "TIFF" and _is_raw(data)) or (kind == "HEIC" and not HAS_HEIC):
        return None
    return kind


def not_an_image(data: bytes, name: str) -> DataError:
    """Return the error for a file without a format that can be decoded. The error names the kind."""
    if not data:
        return DataError(f"{name} is empty; restore or remove the file")
    given, kind = describe(data), _format(data)
    if kind == "HEIC":
        return DataError(f'{name} is {given}; run `pip install "seresnext[heic]"`, or convert the file')
    if kind or _match(data, _OTHER_IMAGES):
        return DataError(f"{name} is {given}, not {', '.join(ENDINGS)}; convert or remove the file")
    return DataError(f"{name} is {given}, no image; restore or remove the file")


def describe(data: bytes) -> str:
    """Return the kind of a file that cannot be decoded, by the first bytes: `a video`, `a HEIC image`, `a text`."""
    if not data:
        return "an empty file"
    kinds = {"HEIC": "a HEIC image", "TIFF": "a camera's raw image"}
    return kinds.get(_format(data) or "") or _match(data, _OTHER_IMAGES) or _other(data[:_LOOKED_AT])


def _match(data: bytes, beginnings: dict[str, bytes]) -> str | None:
    return next((kind for kind, beginning in beginnings.items() if re.match(beginning, data, re.DOTALL)), None)


def _format(data: bytes) -> str | None:
    if kind := _match(data, _FORMATS):
        return kind
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4]), _LOOKED_AT)
        brands = {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}
        # A brand such as mif1 states a container of any coding.
        if data[8:12] in _HEIC_BRANDS | _AVIF_BRANDS:
            return "AVIF" if brands & _AVIF_BRANDS else "HEIC"
    return None


def _is_raw(data: bytes) -> bool:
    """Return whether a TIFF comes from a camera's sensor (DNG, NEF, ARW, CR2): the first page is a preview."""
    if b"+" in data[2:4]:  # BigTIFF, with another layout.
        return False
    order = "little" if data.startswith(b"II") else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    entries = (data[place : place + 12] for place in range(start + 2, start + 2 + 12 * count, 12))
    tags = {int.from_bytes(entry[:2], order): int.from_bytes(entry[8:], order) for entry in entries if len(entry) == 12}
    return data[8:10] == b"CR" or _DNG in tags or tags.get(_SUBFILE) == 1


def _other(head: bytes) -> str:
    if found := _match(head.lstrip(b"\xef\xbb\xbf \t\r\n"), _OTHERS):
        return found
    if not any(head):
        return "zeros at the beginning"
    is_text = head.isascii() and all(one.isprintable() or one.isspace() for one in head.decode("latin-1"))
    return "a text" if is_text else "of an unknown kind"
