from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import pty
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seresnext.data import index as module
from seresnext.data.index import (
    Contents,
    Index,
    NotAnIndex,
    Stamp,
    fingerprint_of,
    index_path,
    open_or_build,
    progress,
    stamp_of,
    write_index,
)
from seresnext.errors import DataError

COLUMNS = ("label", "file_id", "offset", "size", "name_ends", "names")


def contents(count: int = 10, seed: int = 0) -> Contents:
    rng = np.random.default_rng(seed)
    names = [b"%d.JPEG" % n for n in rng.permutation(count)]
    return Contents(
        classes=("ä", "b\udcff", "c"),
        fingerprint="f" * 64,
        files=("one.tar", "two.tar"),
        label=np.sort(rng.integers(0, 3, count)),
        file_id=rng.integers(0, 2, count),
        offset=rng.integers(0, 1 << 40, count),
        size=rng.integers(0, 1 << 20, count),
        names=np.frombuffer(b"".join(names), np.uint8),
        name_ends=np.cumsum([len(name) for name in names]),
    )


# ------------------------------------------------------------------------------------------------ the file


def assert_same(index: Index, said: Contents) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(index, name), getattr(said, name), name)
    assert (index.classes, index.files, index.fingerprint) == (said.classes, said.files, said.fingerprint)


def test_what_is_written_is_read(tmp_path: Path):
    said = contents()
    write_index(tmp_path / "i", said, "stamp")
    index = Index.open(tmp_path / "i")
    assert_same(index, said)
    assert (len(index), index.stamp, index.path) == (10, "stamp", tmp_path / "i")
    names = said.names.tobytes()
    starts = [0, *said.name_ends[:-1]]
    assert [index.stored_name(i).encode() for i in range(10)] == [
        names[a:b] for a, b in zip(starts, said.name_ends, strict=True)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


@given(st.integers(1, 40), st.sampled_from([1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]))
def test_columns_are_as_narrow_as_they_can_be(tmp_path_factory: pytest.TempPathFactory, count: int, largest: int):
    path = tmp_path_factory.mktemp("index") / "i"
    values = np.linspace(0, largest, count).astype(np.uint64)
    values[-1] = largest
    write_index(path, Contents(("a",), "", np.zeros(count, np.int64), offset=values))
    index = Index.open(path)
    np.testing.assert_array_equal(index.offset, values)
    assert index.offset.dtype.itemsize == np.min_scalar_type(largest).itemsize
    assert index.label.dtype == np.int64


def test_arrays_are_views_of_the_file_and_cannot_be_written(tmp_path: Path):
    write_index(tmp_path / "i", contents())
    index = Index.open(tmp_path / "i")
    for name in COLUMNS:
        column = getattr(index, name)
        assert not column.flags.owndata
        assert not column.flags.writeable
        assert column.ctypes.data % column.itemsize == 0


def test_an_index_travels_as_its_path(tmp_path: Path):
    write_index(tmp_path / "small", contents(10))
    write_index(tmp_path / "large", contents(10_000))
    sizes = [len(pickle.dumps(Index.open(tmp_path / name))) for name in ("small", "large")]
    assert sizes[0] == sizes[1] < 300
    assert_same(pickle.loads(pickle.dumps(Index.open(tmp_path / "large"))), contents(10_000))


def test_an_index_that_was_built_anew_does_not_arrive(tmp_path: Path):
    write_index(tmp_path / "i", contents(), "before")
    sent = pickle.dumps(Index.open(tmp_path / "i"))
    write_index(tmp_path / "i", contents(seed=1), "after")
    with pytest.raises(DataError, match="built anew while it was in use"):
        pickle.loads(sent)


def test_an_open_index_outlives_its_replacement(tmp_path: Path):
    write_index(tmp_path / "i", contents())
    index = Index.open(tmp_path / "i")
    write_index(tmp_path / "i", contents(20, seed=1))
    assert_same(index, contents())


def test_what_is_no_index_is_known(tmp_path: Path):
    path = tmp_path / "i"
    with pytest.raises(NotAnIndex):
        Index.open(path)
    write_index(path, contents())
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:30], whole[:-1], whole + b"\0", b"X" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(NotAnIndex):
            Index.open(path)
    for place in range(8, 24 + len(whole) // 4):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        if place < 24 + int.from_bytes(whole[8:16], "little"):
            with pytest.raises(NotAnIndex):
                Index.open(path)


def test_an_index_of_another_version_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_VERSION", 0)
        write_index(tmp_path / "i", contents())
    with pytest.raises(NotAnIndex, match="another version"):
        Index.open(tmp_path / "i")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_index(tmp_path / "i", contents())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_index(tmp_path / "i", contents(20))
    assert_same(Index.open(tmp_path / "i"), contents())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_is_of_classes_counts_and_names():
    counts, ends = np.array([1, 2]), np.array([1, 2, 4])
    same = fingerprint_of(["a", "b"], counts, ends, b"xyzz")
    assert same == fingerprint_of(("a", "b"), counts.astype(np.uint8), ends.astype(np.uint64), b"xyzz")
    others = [
        fingerprint_of(["a", "c"], counts, ends, b"xyzz"),
        fingerprint_of(["a", "b"], counts[::-1], ends, b"xyzz"),
        fingerprint_of(["a", "b"], counts, np.array([1, 3, 4]), b"xyzz"),
        fingerprint_of(["a", "b"], counts, ends, b"xyzw"),
    ]
    assert len({same, *others}) == 5
    assert same != hashlib.sha256().hexdigest()


# ------------------------------------------------------------------------------------------------ built once


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
    (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:-1])
    assert len(open_or_build(tmp_path / "i", lambda: new, lambda: build("third", contents(20)))) == 20
    assert built == ["first", "second", "third"]


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


def test_what_a_killed_build_left_is_removed(tmp_path: Path):
    for name, age in (("i.x.tmp", 7200), ("i.y.tmp", 0), ("j.x.tmp", 7200)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    open_or_build(tmp_path / "i", lambda: OLD, contents)
    assert {path.name for path in tmp_path.glob("*.tmp")} == {"i.y.tmp", "j.x.tmp"}


def test_data_that_changes_meanwhile_is_not_indexed(tmp_path: Path):
    stamps = iter([OLD, OLD, replace_digest("later")])
    with pytest.raises(DataError, match="changed while its index was built"):
        open_or_build(tmp_path / "i", lambda: next(stamps), contents)
    assert not (tmp_path / "i").exists()


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


# ------------------------------------------------------------------------------------------------ progress


def test_a_short_build_says_nothing(capsys: pytest.CaptureFixture[str]):
    with progress("index of train", 10) as advance:
        for _ in range(10):
            advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_long_build_tells_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress("index of train", 100) as advance:
        for second in range(100):
            clock[0] = float(second)
            advance(1)
    assert capsys.readouterr().err.splitlines() == [f"index of train: {n} %" for n in (4, 35, 66, 97)]


def test_a_terminal_gets_a_bar_though_it_says_it_is_0_by_0():
    """What a new pseudo terminal says until someone sets its size."""
    seen, terminal = pty.openpty()
    code = "import time; from seresnext.data import index; index._QUIET_SECONDS = 0.0\n"
    code += "with index.progress('index of train', 4) as advance: time.sleep(0.2); advance(4)"
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, timeout=60)
    os.close(terminal)
    shown = os.read(seen, 10_000).decode()
    os.close(seen)
    assert "index of train" in shown
    assert "4.00/4.00" in shown


def test_contents_can_be_partly_empty(tmp_path: Path):
    said = replace(contents(), names=np.empty(0, np.uint8), name_ends=np.empty(0, np.uint8))
    write_index(tmp_path / "i", said)
    assert_same(Index.open(tmp_path / "i"), said)
