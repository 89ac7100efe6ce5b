"""Regular files and other paths, atomic writes, reads of hostile files, addresses, and the home folder."""

import argparse
import itertools
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from seresnext.arguments import path_argument, text_argument
from seresnext.errors import DataError, Failure, UsageError
from seresnext.files import (
    NotRegularError,
    check_output_file,
    checkpoint_argument,
    expand_home,
    is_remote,
    new_file,
    new_folder,
    open_regular,
    read_at,
    read_lines,
    read_piece,
    read_small_json,
    write_atomically,
    write_json,
)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link"):
        with os.fdopen(open_regular(tmp_path / name), "rb") as file:
            assert file.read() == b"abc"
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotRegularError, match="not a regular file"):
            open_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


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
    "content", [b"", b"{", b"[1]", b"\xff\xfe", None, b"[" * 100_000, b" " * (1 << 20) + b"{}", "zero", "pipe"]
)
def test_an_unreadable_file_is_empty(tmp_path, content):
    if content == "pipe":
        os.mkfifo(tmp_path / "file")
    elif content == "zero":
        (tmp_path / "file").symlink_to("/dev/zero")
    elif content is not None:
        (tmp_path / "file").write_bytes(content)
    assert read_small_json(tmp_path / "file") == {}


def test_the_json_of_an_option(tmp_path):
    """A pipe stands for a device: it is written and not replaced. So is redirected output, which is an open file.

    A link stays.
    """
    (tmp_path / "link").symlink_to("new/file")
    for value, name in (({"a": 1}, "new/file"), ([3], "link")):
        write_json(tmp_path / name, value)
        assert json.loads((tmp_path / "new" / "file").read_text()) == value
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path / "pipe", [2])
    assert json.loads(os.read(reader, 100)) == [2]
    os.close(reader)
    with (tmp_path / "redirected").open("w") as file:
        check_output_file(Path(f"/dev/fd/{file.fileno()}"), "--json")
        for number in (3, 4):
            write_json(Path(f"/dev/fd/{file.fileno()}"), number)
    assert (tmp_path / "redirected").read_text() == "3\n4\n"
    with pytest.raises(Failure, match=r"cannot be written: .*; choose another file"):
        write_json(tmp_path / "new" / "file" / "x", 1)


def test_an_interrupted_block_leaves_the_file_of_before(tmp_path: Path):
    def interrupt() -> None:
        with new_file(tmp_path / "file") as file:
            file.write(b"a part")
            raise KeyboardInterrupt

    (tmp_path / "file").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


def test_an_interrupted_block_leaves_no_folder(tmp_path: Path):
    def interrupt() -> None:
        with new_folder(tmp_path / "new") as folder:
            (folder / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_text_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "text").write_text("K\xe4fer\r\n\r\nWanze\n", encoding, newline="")
    assert read_lines(tmp_path / "text") == ["K\xe4fer", "Wanze"]


@pytest.mark.parametrize(
    ("encoding", "place"), [("latin-1", r"text:2 .*0xe4"), ("utf-16", r"text:1 .*0xff"), (None, "No such")]
)
def test_a_text_in_another_encoding_is_refused(tmp_path, encoding, place):
    if encoding:
        (tmp_path / "text").write_text("Ameise\nK\xe4fer\n", encoding)
    with pytest.raises(DataError, match=place):
        read_lines(tmp_path / "text")


def test_an_output_is_checked_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir(mode=0o500)
    for good in (tmp_path / "file", tmp_path / "new" / "folder" / "file", Path("/dev/stdout"), Path("/dev/null")):
        check_output_file(good, "--json")
    bad = [tmp_path, tmp_path / "file" / "x"]
    bad += [] if os.geteuid() == 0 else [tmp_path / "sealed" / "file", tmp_path / "sealed" / "new" / "file"]
    for path in bad:
        with pytest.raises(UsageError, match="cannot be written; choose another file with --json"):
            check_output_file(path, "--json")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "sealed"}


@pytest.mark.parametrize("given", ["http://h/a", "https://h//a?x=//", "s3://b/a", "hf://a", "simplecache::s3://b/a"])
def test_an_address_is_not_a_path(given):
    assert is_remote(given)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(given)):
        path_argument(given)
    assert "Download" in refusal(given)


def test_the_home_folder_and_texts_that_are_no_path(monkeypatch):
    monkeypatch.setenv("HOME", "/house")
    assert path_argument("~/runs/a b") == expand_home(Path("~/runs/a b")) == Path("/house/runs/a b")
    for path in ("a/~", "./~", "~nobody-of-this-name/a", "a:/b", "https:", "C:\\a"):
        assert not is_remote(path)
        assert path_argument(path) == Path(path)
    assert text_argument("~/images") == "/house/images"
    for empty, argument in itertools.product(("", " "), (path_argument, text_argument)):
        with pytest.raises(argparse.ArgumentTypeError, match="the value is empty"):
            argument(empty)
    with pytest.raises(argparse.ArgumentTypeError, match=r"x\.\.\.: File name too long; give another path"):
        path_argument("x" * 300)


def refusal(given) -> str:
    with pytest.raises(UsageError) as caught:
        checkpoint_argument(str(given))
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.touch()
    assert checkpoint_argument(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_argument("~/x.safetensors") == path


def test_no_checkpoint(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for given in (tmp_path / "other", tmp_path / "link", "x" * 5000, "a\0b", tmp_path, "/dev/null", ""):
        assert "Give auto, never, or the path" in refusal(given)


def test_the_newest_checkpoint_of_a_folder_is_named(tmp_path):
    """The printed argument works unchanged, for a run folder and for the checkpoint folder."""
    newest = tmp_path / "checkpoints" / "last.safetensors"
    newest.parent.mkdir()
    assert "last.safetensors" not in refusal(tmp_path)
    newest.touch()
    for given in (tmp_path, newest.parent):
        assert checkpoint_argument(refusal(given).rpartition("--resume ")[2]) == newest


CONTENT = bytes(range(256))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def descriptors() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


def test_a_piece_is_whole_also_when_the_system_gives_it_in_parts(path, monkeypatch):
    real, calls = os.pread, []

    def at_most_seven(descriptor, size, offset):
        calls.append(size)
        return real(descriptor, min(size, 7), offset)

    monkeypatch.setattr(os, "pread", at_most_seven)
    with path.open("rb") as file:
        assert read_piece(file.fileno(), 50, 20) == CONTENT[50:70]
        assert calls == [20, 13, 6]
        assert read_piece(file.fileno(), 250, 20) == CONTENT[250:]
        assert read_piece(file.fileno(), 500, 20) == b""
        assert file.tell() == 0


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_bytes(CONTENT + b"x"), lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))],
    ids=["size", "time"],
)
def test_a_changed_file_is_not_read(path, change: Callable[[Path], object]):
    before, status = descriptors(), path.stat()
    expected = status.st_size, status.st_mtime_ns
    assert read_at(path, 50, 20, expected) == CONTENT[50:70]
    change(path)
    with pytest.raises(OSError, match="has changed"):
        read_at(path, 50, 20, expected)
    assert read_at(path, 50, 20) == CONTENT[50:70]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_at(path, 50, 20, expected)
    assert descriptors() == before
