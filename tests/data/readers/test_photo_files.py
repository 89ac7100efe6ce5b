"""The files of photos: which files are read again, and which photos can be decoded."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
import pytest
from photographs import make, photo

from seresnext.data.readers import photo_files
from seresnext.data.readers.photo_files import PhotoFile, read_photo_files

OLD = 1_600_000_000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each photo that is read."""
    names: list[str] = []
    real = photo_files.read_image
    monkeypatch.setattr(photo_files, "read_image", lambda path: (names.append(Path(path).name), real(path))[1])
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    for path in root.rglob("*.jpg"):
        os.utime(path, (OLD, OLD))
    return root


def opened(root: Path, max_pixels: int = 50_000_000) -> dict[str, PhotoFile]:
    return read_photo_files(root, root, (), root.parent / "cache", max_pixels)


def test_only_new_and_changed_photos_are_read(root, read):
    (root / "b" / "bad.jpg").write_bytes(photo(1)[:100])
    os.utime(root / "b" / "bad.jpg", (OLD, OLD))
    files = opened(root)
    assert {name: file.digest for name, file in files.items() if not file.problem} == {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest()[:32] for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg")
    }
    assert sorted(read) == ["1.jpg", "2.jpg", "3.jpg", "bad.jpg"]
    read.clear()
    assert opened(root) == files
    assert read == []
    make(root, "b/4.jpg=4", "b/bad.jpg=1")
    (root / "a" / "1.jpg").write_bytes(photo(5))  # The times of the folder do not change.
    (root / "a" / "2.jpg").rename(root / "a" / "moved.jpg")
    assert not any(file.problem for file in opened(root).values())
    assert sorted(read) == ["1.jpg", "4.jpg", "bad.jpg", "moved.jpg"]
    read.clear()
    (root / "b" / "3.jpg").unlink()
    assert sorted(opened(root)) == ["a/1.jpg", "a/moved.jpg", "b/4.jpg", "b/bad.jpg"]
    assert "3.jpg" not in read


def test_photos_are_read_again_by_other_decoders(root, read, monkeypatch):
    """Pillow of another version, or the extra for HEIC, may decode more."""
    opened(root)
    for owner, name, value in ((photo_files, "HAS_HEIC", not photo_files.HAS_HEIC), (PIL, "__version__", "99.0")):
        monkeypatch.setattr(owner, name, value)
        read.clear()
        opened(root)
        assert sorted(read) == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_new_file_may_change_without_a_new_time(root, read):
    now = time.time_ns()
    (root / "a" / "1.jpg").write_bytes(photo(7) + b"1")
    os.utime(root / "a" / "1.jpg", ns=(now, now))
    opened(root)
    read.clear()
    (root / "a" / "1.jpg").write_bytes(photo(7) + b"2")  # The size stays.
    os.utime(root / "a" / "1.jpg", ns=(now, now))
    assert opened(root)["a/1.jpg"].digest == hashlib.sha256(photo(7) + b"2").hexdigest()[:32]
    assert read == ["1.jpg"]


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace('"a/1', '"a/2'), lambda _: "x"])
def test_a_damaged_record_is_written_again(root, read, damage):
    files = opened(root)
    (file,) = (root.parent / "cache").glob("photos-*.json")
    file.write_text(damage(file.read_text()))
    for times in (1, 0):
        read.clear()
        assert opened(root) == files
        assert len(read) == 3 * times


def test_one_process_reads_and_the_others_wait(root, read):
    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)
        found = list(pool.map(lambda _: (barrier.wait(), opened(root))[1], range(4)))
    assert all(each == found[0] for each in found)
    assert len(read) == 3


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_photo_above_the_limit_of_pixels_is_named(root, format, monkeypatch):
    (root / "a" / "large").write_bytes(photo(3, format, size=64))
    assert opened(root, 4096)["a/large"].digest
    problems = {name: file.problem for name, file in opened(root, 4095).items() if file.problem}
    assert problems == {"a/large": "has 64 x 64 pixels, more than data.max_pixels (4095)"}
    monkeypatch.setattr(photo_files, "_MOST_PIXELS", 1000)
    monkeypatch.setattr(photo_files, "decode", lambda *_: pytest.fail("decoded"))
    assert opened(root, 4097)["a/large"].digest


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF"])
def test_a_photo_of_each_format_counts_and_a_cut_photo_does_not(root, format, progressive):
    whole = photo(3, format, size=64, progressive=progressive)  # A JPEG has the option, the others ignore it.
    (root / "a" / "whole").write_bytes(whole)
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    files = opened(root)
    assert files["a/whole"].digest
    assert f"is no {format} image that can be decoded" in files["a/cut.jpg"].problem


def test_other_files_pipes_and_broken_links(root):
    os.mkfifo(root / "a" / "pipe")
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere")
    (root / "a" / "notes.txt").write_text("notes")
    files = opened(root)
    assert (files["a/pipe"].kind, files["a/pipe"].ending) == ("unreadable", "")
    assert (files["a/notes.txt"].kind, files["a/notes.txt"].ending) == ("a text", ".txt")
    assert files["a/pipe.jpg"].problem == "cannot be read (not a regular file)"
    assert files["a/gone.jpg"].problem == "cannot be read (No such file or directory)"
