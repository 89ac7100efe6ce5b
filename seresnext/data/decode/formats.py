"""Names for files that are no JPEG or PNG, found from the first bytes."""

from __future__ import annotations

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_IMAGES = (
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
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
_LOOKED_AT = 512  # bytes


def describe_format(data: bytes) -> tuple[str, str]:
    """Return the kind of a file that is no JPEG or PNG (`is a GIF image, ...`), and the fix."""
    if not data:
        return "is empty", "restore or remove the file"
    if image := _image(data):
        return f"is {image}, not JPEG or PNG", "convert or remove the file"
    return f"is {_other(data[:_LOOKED_AT])}, no JPEG or PNG image", "restore or remove the file"


def _image(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP image"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    return next((name for signature, name in _IMAGES if data.startswith(signature)), None)


def _other(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = next((name for signature, name in _OTHERS if start.startswith(signature)), None)
    if found:
        return found
    if head[4:8] == b"ftyp":
        return "a video"
    if not any(head):
        return "zeros at the beginning"
    text = head.decode("ascii", "replace")
    return (
        "a text" if text.isascii() and all(one.isprintable() or one.isspace() for one in text) else "of an unknown kind"
    )
