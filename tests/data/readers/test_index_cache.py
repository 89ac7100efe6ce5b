"""The folder of indices, and the times of builds."""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from indices import assert_same, contents

from seresnext.data.readers import index_cache as module
from seresnext.data.readers.index import Index
from seresnext.data.readers.index_cache import Signature, index_path, mark_stale, open_or_build, sign
from seresnext.errors import DataError

OLD = Signature("old", 1)
NEW = Signature("new", 1)
EQUAL_TIMES = Signature("old", 1, shows_changes=False)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`start(name, restart)`: make this process one of a torchrun with this name."""

    def begin(name: str, restart: int = 0) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return begin


not_to_be_called = Mock(side_effect=AssertionError("it is built again"))


def opened(tmp_path: Path, signature: Signature, build: Callable[[], Index]) -> Index:
    """Open the index of data with a signature that stays."""
    return open_or_build(tmp_path / "i", lambda: signature, build)


def test_the_index_is_built_once_for_each_state_of_the_data(tmp_path: Path):
    """Machines share a home, and the data of one path has other times or names on each. `chown` changes times alone."""
    first, times, names = opened(tmp_path, OLD, contents), Mock(side_effect=contents), Mock(return_value=contents(20))
    inode = first.path.stat().st_ino
    for _ in range(2):
        assert opened(tmp_path, NEW, times).path == first.path
        assert len(opened(tmp_path, Signature("other", 1), names)) == 20
        assert_same(opened(tmp_path, OLD, not_to_be_called), contents())
    assert (times.call_count, names.call_count) == (1, 1)
    assert first.path.stat().st_ino == inode  # A running training has mapped the file.


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""]
)
def test_a_damaged_index_is_built_again_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[bytes], bytes]
):
    path = opened(tmp_path, OLD, contents).path
    assert capsys.readouterr() == ("", "")  # None at all is the usual case.
    path.write_bytes(harm(path.read_bytes()))
    assert_same(opened(tmp_path, OLD, contents), contents())
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}")
    assert said.count("\n") == 1
    opened(tmp_path, OLD, not_to_be_called)
    assert capsys.readouterr() == ("", "")


def test_a_damaged_record_costs_one_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = opened(tmp_path, OLD, contents)
    (record,) = tmp_path.glob("*.record")
    whole = record.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [b"\xff" * 20, b"[" * 5000, b"../../" + b"a" * 20, b"0" * 64, b"a\0b"]
    for content in damaged:
        record.write_bytes(content)
        build = Mock(return_value=contents())
        again = opened(tmp_path, OLD, build)
        assert (build.call_count, again.path) == (1, first.path), content
        assert record.read_bytes() == whole
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ other signatures


def test_data_without_usable_times_is_listed_once_for_all_processes_of_a_start(tmp_path: Path, start):
    start("a")
    first = opened(tmp_path, EQUAL_TIMES, contents)
    again = opened(tmp_path, EQUAL_TIMES, not_to_be_called)
    assert first.notices == again.notices
    assert "times" in again.notices[-1]
    for name, restart in (("a", 1), ("b", 0)):
        start(name, restart)
        build = Mock(return_value=contents(20))
        for _ in range(3):
            assert len(opened(tmp_path, EQUAL_TIMES, build)) == 20
        assert build.call_count == 1
    assert len(open_or_build(tmp_path / "other", lambda: EQUAL_TIMES, lambda: contents(5))) == 5


@pytest.mark.parametrize("launched", [False, True])
def test_times_that_are_always_now_do_not_block_a_start(tmp_path: Path, start, launched: bool):
    """Two equal listings show that the data did not change. Later starts compare one listing with the index."""
    ticks = iter(range(10**6))

    def now() -> Signature:
        return Signature(f"now {next(ticks)}", 1)

    for name, listings in (("a", 2), ("b", 1)):
        if launched:
            start(name)
        build = Mock(return_value=contents())
        index = open_or_build(tmp_path / "i", now, build)
        assert build.call_count == listings
        assert_same(replace(index, notices=index.notices[:-1]), contents())
        if launched:
            assert open_or_build(tmp_path / "i", now, not_to_be_called).notices == index.notices
    build = Mock(return_value=contents(20))
    start("c")
    assert len(open_or_build(tmp_path / "i", now, build)) == 20
    assert build.call_count == 2


def test_a_missing_file_leads_to_a_listing_at_the_next_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The run that missed the file keeps the index, in later workers, too. At last the file is there again."""
    first = opened(tmp_path, OLD, contents)
    mark_stale(first)
    for signature, count in ((OLD, 9), (NEW, 10)):
        assert len(opened(tmp_path, signature, lambda count=count: contents(count))) == count
        assert len(opened(tmp_path, signature, not_to_be_called)) == count
        assert_same(Index.open(first.path), contents())
    assert capsys.readouterr() == ("", "")
    mark_stale(replace(first, path=tmp_path / "gone" / "i.index"))  # A mark that cannot be written is no error.


# ------------------------------------------------------------------------------------------------ processes


def _open_in_a_process(path: Path, log: Path, begin: float, signature: Signature) -> None:
    def build() -> Index:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return contents(1000)

    time.sleep(max(0.0, begin - time.time()))
    assert_same(replace(open_or_build(path, lambda: signature, build), notices=contents().notices), contents(1000))


@pytest.mark.parametrize("signature", [OLD, EQUAL_TIMES])
def test_of_many_processes_one_builds_and_the_others_wait(tmp_path: Path, start, signature: Signature):
    """If times are not usable, this holds for the processes of one start."""
    start("a")
    context = multiprocessing.get_context("fork")
    words = (tmp_path / "i", tmp_path / "log", time.time() + 0.2, signature)
    processes = [context.Process(target=_open_in_a_process, args=words) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_an_index_is_built_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network file system may have no locks."""
    monkeypatch.setattr(module.fcntl, "flock", Mock(side_effect=OSError(37, "No locks available")))
    assert_same(opened(tmp_path, OLD, contents), contents())


def age(path: Path, days: float) -> None:
    then = time.time() - 86_400 * days
    os.utime(path, (then, then))


def test_unused_indices_are_removed_by_the_next_build(tmp_path: Path):
    ages, paths = {"old": 31, "opened": 31, "young": 29, "new": 0}, {}
    for number, name in enumerate(ages):
        signature, found = Signature(name, 1), contents(20 + number)
        index = opened(tmp_path, signature, lambda found=found: found)
        paths[name] = [index.path, tmp_path / f"i-{name}.record"]
    for name, days in ages.items():
        for path in paths[name]:
            path.touch()
            age(path, days)
    opened(tmp_path, Signature("opened", 1), not_to_be_called)
    # Names of earlier versions, of other data, and of builds that were killed.
    for name, days in {"i.index": 31, "i.lock": 31, "j-old": 31, "i-x.tmp": 31, "i-y.tmp": 0, "j-x.tmp": 31}.items():
        (tmp_path / name).mkdir() if name.endswith(".tmp") else (tmp_path / name).touch()
        age(tmp_path / name, days)
    (lock,) = tmp_path.glob("i-*.lock")
    age(lock, 31)
    opened(tmp_path, Signature("newest", 1), contents)
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".index"}
    assert left == {
        *(f"i-{name}.record" for name in ("opened", "young", "new", "newest")),
        *(lock.name, "j-old", "i-y.tmp", "j-x.tmp"),
    }
    assert sorted(len(Index.open(path)) for path in tmp_path.glob("*.index")) == [10, 21, 22, 23]


def test_data_that_changes_without_end_is_not_indexed(tmp_path: Path):
    signatures = (OLD._replace(digest=str(n)) for n in range(100))
    build = Mock(side_effect=[contents(count) for count in range(10, 30)])
    with pytest.raises(DataError, match="changed during the build of the index"):
        open_or_build(tmp_path / "i", lambda: next(signatures), build)
    assert build.call_count == 3
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_data_that_changes_once_meanwhile_is_listed_again(tmp_path: Path):
    """The last file of a copy arrives during the listing. The second listing is kept, under the last signature."""
    build = Mock(side_effect=[contents(9), contents()])
    assert len(open_or_build(tmp_path / "i", lambda: NEW if build.call_count else OLD, build)) == 10
    assert build.call_count == 2
    opened(tmp_path, NEW, not_to_be_called)


@pytest.mark.parametrize(("fraction", "at_least"), [(123_456_789, 0.02), (0, 2.0)])
def test_a_change_in_the_same_tick_cannot_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: int, at_least: float
):
    """Data with the time of now may change again with the same time, so the build waits."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "time_ns", lambda: 1_700_000_000_000_000_000 + fraction + 5_000_000)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    newest = 1_700_000_000_000_000_000 + fraction
    opened(tmp_path, sign("x", times=[(newest - 2, newest - 1), (5, newest)]), contents)
    assert len(waits) == 1
    assert waits[0] >= at_least
    open_or_build(tmp_path / "j", lambda: Signature("x", newest - 10_000_000_000), contents)
    assert len(waits) == 1


# ------------------------------------------------------------------------------------------------ the cache folder


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
    cases = "folder data train", "folder data val", "imagenet data train", "folder b val"
    paths = [index_path(tmp_path, kind, tmp_path / root, split) for kind, root, split in map(str.split, cases)]
    assert len(set(paths)) == 4
    assert index_path(tmp_path, "folder", tmp_path / "link", "train") == paths[0]


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file: File exists; set data.cache to a folder"):
        index_path(tmp_path / "file", "folder", tmp_path, "train")
    with pytest.raises(DataError, match=r"cannot be kept in .*gone: No such file or directory; .* data.cache"):
        open_or_build(tmp_path / "gone" / "i", lambda: OLD, contents)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    with pytest.raises(DataError, match=r"in the user's cache folder: Could not determine home directory"):
        index_path(None, "folder", tmp_path, "train")
