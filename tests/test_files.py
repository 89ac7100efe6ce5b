"""Regular files, and paths that are no regular files."""

import os
from pathlib import Path

import pytest

from seresnext.files import NotRegularError, open_regular


def test_a_file_and_a_link_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with os.fdopen(open_regular(tmp_path / name), "rb") as file:
            assert file.read() == b"abc"


def test_other_paths_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotRegularError, match="not a regular file"):
            open_regular(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
