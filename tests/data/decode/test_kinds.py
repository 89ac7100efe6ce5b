"""The kind of a file. Pillow and pillow-heif, which recognise the formats by rules of their own, are the oracles."""

import gzip
import io

import pytest
from encoded_images import encoded, needs_heic, noise
from PIL import Image

from seresnext.data.decode import kinds
from seresnext.data.decode.kinds import ENDINGS, kind_of, not_an_image

PICTURE = noise(16, 24)
GRAY = PICTURE.convert("L")


@pytest.mark.parametrize("kind", [kind for kind in ENDINGS if kind != "HEIC"])
def test_each_format_is_known_by_its_content(kind: str):
    data = encoded(PICTURE, kind)
    assert kind_of(data) == kind
    assert Image.open(io.BytesIO(data)).format == kind.upper()
    assert kind_of(data[:3]) in (None, "JPEG")


def test_large_tiffs_and_tiffs_of_both_byte_orders_are_known():
    assert kind_of(encoded(PICTURE, "TIFF", big_tiff=True)) == "TIFF"
    assert kind_of(encoded(PICTURE.convert("I;16B"), "TIFF")) == "TIFF"


@needs_heic
def test_heic_needs_the_extra(monkeypatch: pytest.MonkeyPatch):
    data = encoded(PICTURE, "HEIF")
    assert kind_of(data) == "HEIC"
    monkeypatch.setattr(kinds, "HAS_HEIC", False)
    assert kind_of(data) is None
    assert str(not_an_image(data, "a.jpg")) == (
        'a.jpg is a HEIC image; run `pip install "seresnext[heic]"`, or convert the file'
    )
    # A container without a brand of its own has the coding among the others.
    assert kind_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif") == "AVIF"
    assert kind_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic") is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypisom\0\0\2\0", "a video"),
        (b"\xff\x0a\x7a", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (encoded(PICTURE, "JPEG2000"), "a JPEG 2000 image"),
        (encoded(PICTURE, "ICO"), "an icon"),
        (encoded(GRAY, "TIFF", tiffinfo={0x00FE: 1}), "a camera's raw image"),
        (encoded(GRAY, "TIFF", tiffinfo={0xC612: 1}), "a camera's raw image"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw image"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw image"),
        (b"FUJIFILMCCD-RAW 0201FF", "a camera's raw image"),
        (b"RIFF\0\0\1\0AVI LIST", "a video"),
        (b"\x1a\x45\xdf\xa3\x9fB", "a video"),
        (gzip.compress(b"a", mtime=0), "a gzip archive"),
        (b"PK\3\4\x14\0", "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
        (b"BMW and other words", "a text"),
        (b"403 Forbidden\n", "a text"),
        (bytes(9000), "zeros"),
        (b"\xd0\xcf\x11\xe0", "of an unknown kind"),
        (b"\x89PNG\n", "of an unknown kind"),
        ("Käfer".encode("latin-1"), "of an unknown kind"),
    ],
)
def test_the_kind_of_a_file(data: bytes, kind: str):
    message = str(not_an_image(data, "a/7.jpg"))
    assert message.startswith("a/7.jpg is ")
    assert kind in message
    assert ("convert" in message) == ("not JPEG" in message)
    assert kind_of(data) is None
