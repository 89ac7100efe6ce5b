"""A power cut at any time during a save leaves the old or the new checkpoint.

A power cut loses data that a killed process leaves in the kernel. The content of a file is safe after the file is
synced, and the names in a folder after the folder is synced. Before, any subset of the changes may be on the disk. A
simulated disk around the real one lists all folders that a power cut may leave.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted_saves import NEW, OLD, assert_next_save_mends, assert_sound, make_old, save_new

from seresnext.errors import CheckpointError

Folder = dict[str, bytes]
Names = dict[str, int | None]
CALLS = {name: getattr(os, name) for name in ("open", "write", "pwrite", "fsync", "replace", "link", "unlink")}


class Disk:
    """The safe and the unsafe changes of a folder. Controls: `forgets` drops syncs of `files` or of the `folder`."""

    def __init__(self, folder: Path, forgets: str | None = None) -> None:
        self._folder, self._forgets = folder, forgets
        self._now: Names = {path.name: path.stat().st_ino for path in folder.iterdir()}
        self._files = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self._certain, self._synced = self._now, dict(self._files)
        self._changes: list[Names] = []
        self.states: list[Folder] = []

    def look(self, synced: int = -1) -> None:
        """Note the changes since the last look: of contents, and of names that change together."""
        before, self._now = self._now, {path.name: path.stat().st_ino for path in self._folder.iterdir()}
        self._files |= {path.stat().st_ino: path.read_bytes() for path in self._folder.iterdir()}
        names = [name for name in {**before, **self._now} if before.get(name) != self._now.get(name)]
        self._changes += [{name: self._now.get(name) for name in names}] if names else []
        if synced in self._files and self._forgets != "files":
            self._synced[synced] = self._files[synced]
        if synced == self._folder.stat().st_ino and self._forgets != "folder":
            self._certain, self._changes = self._now, []
        self.states += [state for state in self.possible() if state not in self.states]

    def possible(self) -> Iterator[Folder]:
        """Return every folder that a power cut may leave now."""
        for happened in itertools.product([False, True], repeat=len(self._changes)):
            names = dict(self._certain)
            for change in itertools.compress(self._changes, happened):
                names.update(change)
            files = sorted({number for number in names.values() if number is not None})
            for contents in itertools.product(*map(self._contents, files)):
                by_number = dict(zip(files, contents, strict=True))
                yield {name: by_number[number] for name, number in names.items() if number is not None}

    def _contents(self, number: int) -> list[bytes]:
        now, synced = self._files[number], self._synced.get(number, b"")
        return [now] if now == synced else [synced, now[: len(now) // 2], now]


def possible_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forgets: str | None = None
) -> tuple[list[Folder], list[Folder]]:
    """Save into a folder. Return the folders that a power cut may leave, during and after the save."""
    disk = Disk(folder, forgets)

    def observed(name):
        def call(*words, **options):
            result = CALLS[name](*words, **options)
            disk.look(os.fstat(words[0]).st_ino if name == "fsync" else -1)
            return result

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, observed(name))
        save_new(folder)
    return disk.states, list(disk.possible())


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
