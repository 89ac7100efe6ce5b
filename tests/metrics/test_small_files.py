"""Small files of a run folder: atomic writes, and reads of hostile files."""

import os
import threading

import pytest

from seresnext.metrics.small_files import read_small_json, write_atomically


def test_a_reader_never_sees_a_part(tmp_path):
    target, texts, seen = tmp_path / "file", ["a" * 200_000, "b" * 100_000], set()
    write_atomically(target, texts[0])
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(target.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write_atomically(target, texts[number % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_names_the_file_and_leaves_no_temporary_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file", "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", None, b"[" * 100_000, b" " * (1 << 20) + b"{}", "zero", "pipe"]
)
def test_an_unreadable_file_is_none(tmp_path, content):
    if content == "pipe":
        os.mkfifo(tmp_path / "file")
    elif content == "zero":
        (tmp_path / "file").symlink_to("/dev/zero")
    elif content is not None:
        (tmp_path / "file").write_bytes(content)
    assert read_small_json(tmp_path / "file") is None
