"""Where indices are kept, and when they are built."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from indices import assert_same, contents

from seresnext.data import index_cache as module
from seresnext.data.index import Contents, Index
from seresnext.data.index_cache import Stamp, index_path, open_or_build, stamp_of
from seresnext.errors import DataError

OLD = Stamp("old", 1)


def test_it_is_built_once_and_again_when_the_data_changed(tmp_path: Path):
    built: list[str] = []

    def build(name: str, said: Contents) -> Contents:
        built.append(name)
        return said

    for _ in range(3):
        assert_same(open_or_build(tmp_path / "i", lambda: OLD, lambda: build("first", contents())), contents())
    assert built == ["first"]
    new = OLD._replace(digest="new")
    changed = open_or_build(tmp_path / "i", lambda: new, lambda: build("second", contents(20)))
    assert (len(changed), built) == (20, ["first", "second"])
    assert len(open_or_build(tmp_path / "i", lambda: new, lambda: build("third", contents(20)))) == 20
    assert built == ["first", "second"]


def test_machines_with_data_of_their_own_do_not_take_turns(tmp_path: Path):
    """A home for all, and on each machine data under one path with other times: each keeps its index, open or not."""
    here = open_or_build(tmp_path / "i", lambda: OLD, contents)
    there = open_or_build(tmp_path / "i", lambda: OLD._replace(digest="there"), lambda: contents(20))
    inodes = [index.path.stat().st_ino for index in (here, there)]
    for _ in range(2):
        assert len(open_or_build(tmp_path / "i", lambda: OLD, not_to_be_called)) == 10
        assert len(open_or_build(tmp_path / "i", lambda: OLD._replace(digest="there"), not_to_be_called)) == 20
    assert [index.path.stat().st_ino for index in (here, there)] == inodes
    assert_same(here, contents())


def not_to_be_called() -> Contents:
    raise AssertionError("it is built again")


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""]
)
def test_a_damaged_index_is_built_anew_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[bytes], bytes]
):
    path = open_or_build(tmp_path / "i", lambda: OLD, contents).path
    assert capsys.readouterr() == ("", "")  # None at all is the usual case.
    path.write_bytes(harm(path.read_bytes()))
    assert_same(open_or_build(tmp_path / "i", lambda: OLD, contents), contents())
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}")
    assert said.endswith("; it is built anew\n")
    assert said.count("\n") == 1
    open_or_build(tmp_path / "i", lambda: OLD, not_to_be_called)
    assert capsys.readouterr() == ("", "")


def test_an_index_of_other_data_under_its_name_is_not_used(tmp_path: Path):
    """The name has a part of the stamp, the file all of it."""
    long, other = (Stamp(16 * "0" + end, 1) for end in "ab")
    path = open_or_build(tmp_path / "i", lambda: long, contents).path
    again = open_or_build(tmp_path / "i", lambda: other, lambda: contents(20))
    assert (again.path, len(again)) == (path, 20)


def _open_in_a_process(path: Path, log: Path, start: float) -> None:
    def build() -> Contents:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return contents(1000)

    time.sleep(max(0.0, start - time.time()))
    assert_same(open_or_build(path, lambda: OLD, build), contents(1000))


def test_of_many_processes_one_builds_and_the_others_wait(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    start = time.time() + 0.2
    words = (tmp_path / "i", tmp_path / "log", start)
    processes = [context.Process(target=_open_in_a_process, args=words) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_without_locks_it_is_built_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    assert_same(open_or_build(tmp_path / "i", lambda: OLD, contents), contents())


def test_without_locks_the_first_to_be_done_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Others have it mapped by then; over a network a file that is replaced ends who reads it."""
    monkeypatch.setattr(module.fcntl, "flock", lambda *_: None)
    first: list[Index] = []

    def build() -> Contents:
        first.append(open_or_build(tmp_path / "i", lambda: OLD, contents))
        return contents()

    second = open_or_build(tmp_path / "i", lambda: OLD, build)
    inode = first[0].path.stat().st_ino
    assert second.path.stat().st_ino == inode
    assert_same(second, contents())


def age(path: Path, days: float) -> None:
    then = time.time() - 86_400 * days
    os.utime(path, (then, then))


def test_what_was_unused_for_long_is_removed_by_the_next_build(tmp_path: Path):
    ages = {"old": 31, "opened": 31, "young": 29, "new": 0}
    built = [open_or_build(tmp_path / "i", lambda of=of: OLD._replace(digest=of), contents).path for of in ages]
    for path, days in zip(built, ages.values(), strict=True):
        age(path, days)
        age(path.with_suffix(".lock"), days)
    open_or_build(tmp_path / "i", lambda: OLD._replace(digest="opened"), not_to_be_called)
    others = ("i.index", "j-old", "h-i-old")  # Its name before it had a part of the stamp in it; and of other data.
    for name in others:
        (tmp_path / name).touch()
        age(tmp_path / name, 31)
    open_or_build(tmp_path / "i", lambda: OLD._replace(digest="newest"), contents)
    indices = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert indices == {"i-opened", "i-young", "i-new", "i-newest", "j-old", "h-i-old"}
    assert {path.stem for path in tmp_path.glob("*.lock")} == {"i-young", "i-new", "i-newest"}


def test_what_a_killed_build_left_is_removed(tmp_path: Path):
    for name, hours in (("i-old.x.tmp", 2), ("i-old.y.tmp", 0), ("j-old.x.tmp", 2)):
        (tmp_path / name).write_text("half")
        age(tmp_path / name, hours / 24)
    open_or_build(tmp_path / "i", lambda: OLD, contents)
    assert {path.name for path in tmp_path.glob("*.tmp")} == {"i-old.y.tmp", "j-old.x.tmp"}


def test_data_that_changes_meanwhile_is_not_indexed(tmp_path: Path):
    stamps = iter([OLD, OLD, replace_digest("later")])
    with pytest.raises(DataError, match="changed while its index was built"):
        open_or_build(tmp_path / "i", lambda: next(stamps), contents)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def replace_digest(digest: str) -> Stamp:
    return OLD._replace(digest=digest)


@pytest.mark.parametrize(("fraction", "at_least"), [(123_456_789, 0.02), (0, 2.0)])
def test_a_change_in_the_same_tick_cannot_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: int, at_least: float
):
    """Data whose time is now may change once more without another time: the build waits until that is over."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "time_ns", lambda: 1_700_000_000_000_000_000 + fraction + 5_000_000)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    newest = 1_700_000_000_000_000_000 + fraction
    open_or_build(tmp_path / "i", lambda: Stamp("x", newest), contents)
    assert len(waits) == 1
    assert waits[0] >= at_least
    open_or_build(tmp_path / "j", lambda: Stamp("x", newest - 10_000_000_000), contents)
    assert len(waits) == 1


def test_stamps_differ_with_any_fact_or_time():
    base = stamp_of("folder", ["a", "b"], times=[5, 3])
    assert base.newest == 5
    assert base == stamp_of("folder", ["a", "b"], times=[5, 3])
    others = [
        stamp_of("imagenet", ["a", "b"], times=[5, 3]),
        stamp_of("folder", ["a", "c"], times=[5, 3]),
        stamp_of("folder", ["a", "b"], times=[3, 5]),
        stamp_of("folder", ["ab"], times=[5, 3]),
    ]
    assert len({base.digest, *(stamp.digest for stamp in others)}) == 5


# ------------------------------------------------------------------------------------------------ where it is kept


def test_the_users_cache_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = index_path(None, "folder", tmp_path / "data", "train")
    assert path.parent == tmp_path / "xdg" / "seresnext"
    assert path.parent.is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert index_path(None, "folder", tmp_path, "val").parent == tmp_path / "home" / ".cache" / "seresnext"
    assert index_path(tmp_path / "own", "folder", tmp_path, "val").parent == tmp_path / "own"


def test_each_split_of_each_folder_has_its_own(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "data")
    cases = [
        ("folder", "data", "train"),
        ("folder", "data", "val"),
        ("imagenet", "data", "train"),
        ("folder", "b", "val"),
    ]
    paths = [index_path(tmp_path, kind, tmp_path / root, split) for kind, root, split in cases]
    assert len(set(paths)) == 4
    assert index_path(tmp_path, "folder", tmp_path / "link", "train") == paths[0]


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file: File exists; give a folder .* data.cache"):
        index_path(tmp_path / "file", "folder", tmp_path, "train")
    with pytest.raises(DataError, match=r"cannot be kept in .*gone: No such file or directory; .* data.cache"):
        open_or_build(tmp_path / "gone" / "i", lambda: OLD, contents)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(DataError, match=r"in the home folder: Could not determine home directory"):
        index_path(None, "folder", tmp_path, "train")
