"""The index of the files of photos: what is read again, and which photos can be decoded."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
import pytest
from photographs import make, photo

from seresnext.data.readers import photo_files
from seresnext.data.readers.photo_files import open_photo_index

OLD = 1_600_000_000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the path of each photo that is read."""
    paths: list[str] = []
    real = photo_files.read_image

    def remember(path: str) -> bytes:
        paths.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(photo_files, "read_image", remember)
    return paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    for path in root.rglob("*.jpg"):
        os.utime(path, (OLD, OLD))
    return root


def opened(root: Path) -> dict[str, str]:
    """Return the verdict on each file."""
    index = open_photo_index(root, root, (), root.parent / "cache")
    return {name: index.classes[label] for name, label in zip(index.stored_names(), index.label, strict=True)}


def test_only_new_and_changed_photos_are_read(root, read):
    assert set(opened(root).values()) == {""}
    assert sorted(read) == ["1.jpg", "2.jpg", "3.jpg"]
    read.clear()
    opened(root)
    assert read == []
    make(root, "b/4.jpg=4")
    (root / "a" / "1.jpg").write_bytes(photo(5))  # The times of the folder do not change.
    (root / "a" / "2.jpg").rename(root / "a" / "moved.jpg")
    opened(root)
    assert sorted(read) == ["1.jpg", "4.jpg", "moved.jpg"]
    read.clear()
    (root / "b" / "3.jpg").unlink()
    assert sorted(opened(root)) == ["a/1.jpg", "a/moved.jpg", "b/4.jpg"]
    assert "3.jpg" not in read


def test_a_bad_photo_is_read_again_after_a_change_only(root, read):
    (root / "a" / "bad.jpg").write_bytes(photo(1)[:100])
    assert opened(root)["a/bad.jpg"] != ""
    read.clear()
    assert opened(root)["a/bad.jpg"] != ""
    assert read == []
    (root / "a" / "bad.jpg").write_bytes(photo(1))
    assert opened(root)["a/bad.jpg"] == ""


def test_bad_photos_are_read_again_by_other_decoders(root, read, monkeypatch):
    """Pillow of another version, or the extra for HEIC, may decode more."""
    (root / "a" / "bad.jpg").write_bytes(photo(1)[:100])
    opened(root)
    for owner, name, value in ((photo_files, "HAS_HEIC", not photo_files.HAS_HEIC), (PIL, "__version__", "99.0")):
        monkeypatch.setattr(owner, name, value)
        read.clear()
        opened(root)
        assert read == ["bad.jpg"]


def test_times_that_are_always_now(root, monkeypatch, read):
    monkeypatch.setattr(photo_files, "_states", lambda base, paths: [(9, __import__("time").time_ns()) for _ in paths])
    monkeypatch.setattr("seresnext.data.readers.index_cache._FINE_TICK_NS", 1)
    monkeypatch.setattr("seresnext.data.readers.index_cache._COARSE_TICK_NS", 1)
    index = open_photo_index(root, root, (), root.parent / "cache")
    assert "the times do not show changes" in index.notices[0]
    assert len(read) >= 3


def test_a_damaged_index_is_built_again(root, read, capsys):
    opened(root)
    (file,) = (root.parent / "cache").glob("photos-*.index")
    file.write_bytes(file.read_bytes()[:-20])
    read.clear()
    assert len(opened(root)) == 3
    assert len(read) == 3


def test_one_process_reads_and_the_others_wait(root, read):
    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)
        found = list(pool.map(lambda _: (barrier.wait(), opened(root))[1], range(4)))
    assert all(each == found[0] for each in found)
    assert len(read) == 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF"])
def test_a_photo_of_each_format_counts_and_a_cut_photo_does_not(root, format):
    whole = photo(3, format, size=64)
    (root / "a" / "whole").write_bytes(whole)
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    verdicts = opened(root)
    assert verdicts["a/whole"] == ""
    assert f"is no {format} image that can be decoded" in verdicts["a/cut.jpg"]


def test_a_progressive_jpeg_is_decoded_whole(root):
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.open(io.BytesIO(photo(3, size=64))).save(data, "JPEG", progressive=True)
    (root / "a" / "whole.jpg").write_bytes(data.getvalue())
    (root / "a" / "cut.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    verdicts = opened(root)
    assert (verdicts["a/whole.jpg"], verdicts["a/cut.jpg"] != "") == ("", True)


def test_other_files_pipes_and_broken_links(root):
    os.mkfifo(root / "a" / "pipe")
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere")
    (root / "a" / "notes.txt").write_text("notes")
    verdicts = opened(root)
    assert verdicts["a/pipe"] == "no image\tunreadable\t"
    assert verdicts["a/notes.txt"] == "no image\ta text\t.txt"
    assert verdicts["a/pipe.jpg"] == "cannot be read (not a regular file)"
    assert verdicts["a/gone.jpg"] == "cannot be read (No such file or directory)"
