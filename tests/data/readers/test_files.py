import os
from collections.abc import Callable
from pathlib import Path

import pytest

from seresnext.data.readers.files import read_at, read_piece

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
