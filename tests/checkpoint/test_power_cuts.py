"""A power cut at any time during a save leaves the old or the new checkpoint.

A power cut loses data that a killed process leaves in the kernel. The content of a file is safe after the file is
synced, and the names in a folder after the folder is synced. Before, any subset of the changes may be on the disk. A
simulated disk around the real one lists all folders that a power cut may leave.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted_saves import NEW, OLD, assert_next_save_mends, assert_sound, make_old, save_new

from seresnext.errors import CheckpointError

Folder = dict[str, bytes]


class Disk:
    """The safe and the unsafe changes of a folder. Controls: `forgets` drops syncs of `files` or of the `folder`."""

    def __init__(self, folder: Path, forgets: str | None = None) -> None:
        self._forgets = forgets
        self._files = dict(enumerate(path.read_bytes() for path in sorted(folder.iterdir())))
        self._synced = dict(self._files)
        self._now = {path.name: number for number, path in enumerate(sorted(folder.iterdir()))}
        self._certain = dict(self._now)
        self._changes: list[dict[str, int | None]] = []
        self.states: list[Folder] = []

    def names(self, change: dict[str, int | None]) -> None:
        """Names that change together."""
        self._changes.append(change)
        self._now.update(change)  # pyright: ignore[reportCallIssue]
        self._note()

    def create(self, name: str) -> None:
        self._files[len(self._files)] = b""
        self._synced[len(self._synced)] = b""
        self.names({name: len(self._files) - 1})

    def file(self, name: str) -> int:
        return self._now[name]

    def write(self, name: str, content: bytes) -> None:
        self._files[self.file(name)] = content
        self._note()

    def sync(self, name: str | None) -> None:
        """Sync a file, or the folder if there is no name."""
        if name and self._forgets != "files":
            self._synced[self.file(name)] = self._files[self.file(name)]
        elif not name and self._forgets != "folder":
            for change in self._changes:
                self._certain.update(change)  # pyright: ignore[reportCallIssue]
            self._changes = []
        self._note()

    def _note(self) -> None:
        self.states += [state for state in self.possible() if state not in self.states]

    def possible(self) -> Iterator[Folder]:
        """Return every folder that a power cut may leave now."""
        for happened in itertools.product([False, True], repeat=len(self._changes)):
            names: dict[str, int | None] = dict(self._certain)
            for change in itertools.compress(self._changes, happened):
                names.update(change)
            files = sorted({number for number in names.values() if number is not None})
            for contents in itertools.product(*map(self._contents, files)):
                by_number = dict(zip(files, contents, strict=True))
                yield {name: by_number[number] for name, number in names.items() if number is not None}

    def _contents(self, number: int) -> list[bytes]:
        now, synced = self._files[number], self._synced[number]
        return [now] if now == synced else [synced, now[: len(now) // 2], now]


def possible_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forgets: str | None = None
) -> tuple[list[Folder], list[Folder]]:
    """Save into a folder. Return the folders that a power cut may leave, during and after the save."""
    disk = Disk(folder, forgets)

    def path_of(file: int) -> Path:
        return (Path("/proc/self/fd") / str(file)).readlink()

    def opened(path, flags, *mode, **options):
        file = REAL["open"](path, flags, *mode, **options)
        if flags & os.O_CREAT:
            disk.create(Path(path).name)
        return file

    def written(name):
        def write(file, *arguments):
            count = REAL[name](file, *arguments)
            if stat.S_ISREG(os.fstat(file).st_mode):
                disk.write(path_of(file).name, path_of(file).read_bytes())
            return count

        return write

    def synced(file):
        REAL["fsync"](file)
        disk.sync(path_of(file).name if stat.S_ISREG(os.fstat(file).st_mode) else None)

    def replaced(source, target):
        REAL["replace"](source, target)
        if not Path(source).exists():  # A rename between two names of one file removes no name.
            disk.names({Path(target).name: disk.file(Path(source).name), Path(source).name: None})

    def linked(source, target):
        REAL["link"](source, target)
        disk.names({Path(target).name: disk.file(Path(source).name)})

    def unlinked(path):
        REAL["unlink"](path)
        disk.names({Path(path).name: None})

    observed = {"open": opened, "write": written("write"), "pwrite": written("pwrite"), "fsync": synced}
    with monkeypatch.context() as patch:
        for name, function in {**observed, "replace": replaced, "link": linked, "unlink": unlinked}.items():
            patch.setattr(os, name, function)
        save_new(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == disk.states[-1]
    return disk.states, list(disk.possible())


REAL = {name: getattr(os, name) for name in ("open", "write", "pwrite", "fsync", "replace", "link", "unlink")}


def lay_out(state: Folder, folder: Path) -> Path:
    folder.mkdir()
    for name, content in state.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_power_cut_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch):
    make_old(tmp_path / "run")
    states, after = possible_folders(tmp_path / "run", monkeypatch)
    found = [assert_sound(lay_out(state, tmp_path / str(number))) for number, state in enumerate(states)]
    assert len(found) > 15
    assert set(found) == {OLD, NEW}
    assert {found[states.index(state)] for state in after} == {NEW}  # A complete save survives.
    for number in range(0, len(states), 10):
        assert_next_save_mends(tmp_path / str(number))


@pytest.mark.parametrize("forgets", ["files", "folder"])
def test_a_missing_sync_can_lose_both(tmp_path, monkeypatch, forgets):
    """The control: each kind of sync is needed."""
    make_old(tmp_path / "run")
    lost = 0
    states, after = possible_folders(tmp_path / "run", monkeypatch, forgets)
    for number, state in enumerate(states):
        try:
            found = assert_sound(lay_out(state, tmp_path / str(number)))
            assert found == NEW or state not in after
        except (AssertionError, CheckpointError):
            lost += 1
    assert lost > 0
