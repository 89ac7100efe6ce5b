import os
from pathlib import Path

import pytest

from seresnext.data.readers.files import read_piece
from seresnext.files import open_regular


def test_a_piece_is_whole_also_when_the_system_gives_it_in_parts(tmp_path, monkeypatch):
    content = bytes(range(256))
    (tmp_path / "file").write_bytes(content)
    real, calls = os.pread, []

    def at_most_seven(descriptor, size, offset):
        calls.append(size)
        return real(descriptor, min(size, 7), offset)

    monkeypatch.setattr(os, "pread", at_most_seven)
    with (tmp_path / "file").open("rb") as file:
        assert read_piece(file.fileno(), 50, 20) == content[50:70]
        assert calls == [20, 13, 6]
        assert read_piece(file.fileno(), 250, 20) == content[250:]
        assert read_piece(file.fileno(), 500, 20) == b""
        assert file.tell() == 0


def test_only_a_regular_file_is_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with os.fdopen(open_regular(tmp_path / name), "rb") as file:
            assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")  # A plain open waits for a writer.
    (tmp_path / "device").symlink_to("/dev/zero")
    before = sorted(Path("/proc/self/fd").iterdir())
    for name in ("pipe", "device", "."):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
    assert sorted(Path("/proc/self/fd").iterdir()) == before
