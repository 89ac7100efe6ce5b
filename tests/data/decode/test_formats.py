import gzip
import io
import zipfile

import pytest

from seresnext.data.decode.formats import describe_format


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"a")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "a video"),
        (b"\xff\x0a\x7a", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"GIF89a", "a GIF image"),
        (b"MM\0*\0\0\0\x08", "a TIFF image"),
        (gzip.compress(b"a", mtime=0), "a gzip archive"),
        (zipped(), "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
        (b"403 Forbidden\n", "a text"),
        (bytes(9000), "zeros"),
        (b"\xd0\xcf\x11\xe0", "of an unknown kind"),
        (b"\x89PNG\n", "of an unknown kind"),
        ("Käfer".encode("latin-1"), "of an unknown kind"),
    ],
)
def test_the_kind_of_a_file(data: bytes, kind: str):
    found, cure = describe_format(data)
    assert kind in found
    assert ("convert" in cure) == ("image," in found)
