"""The checkpoint folder: after any failure a valid file stays, and the message has the reason."""

import errno
import itertools
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from damage import flip_bit
from mirrors import save

from seresnext.checkpoint import store
from seresnext.errors import CheckpointError
from seresnext.files import open_regular


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_commit_then_read(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 1234)
    assert path == tmp_path / "run" / "checkpoints" / "step-00001234.safetensors"
    tensors, metadata = store.read(path)
    assert torch.equal(tensors["model.weight"], torch.full((1000,), 1234.0))
    assert metadata["step"] == "1234"
    assert names(path.parent) == [path.name]
    store.commit(path.parent, 1234, {"model.weight": torch.zeros(1)}, {"step": "1234"})  # replaces the file
    assert store.read(path)[0].keys() == {"model.weight"}


def failing(error_number: int, real, times: int = 1):
    """Return the function `real` with a failure of the `times`-th call."""
    calls = itertools.count(1)

    def call(*arguments, **options):
        if next(calls) == times:
            raise OSError(error_number, os.strerror(error_number))
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("owner", "name", "number", "times"),
    [(os, "open", errno.EACCES, 1), (os, "write", errno.EFBIG, 1), (os, "write", errno.EDQUOT, 2),
     (os, "pwrite", errno.EIO, 1), (os, "fsync", errno.ENOSPC, 1), (Path, "replace", errno.EROFS, 1)],
)  # fmt: skip
def test_failed_commit_leaves_the_folder_as_it_was(tmp_path, monkeypatch, owner, name, number, times):
    save(tmp_path, 1)
    message = rf"step-00000002\.safetensors could not be saved: {os.strerror(number)}; older files are unchanged"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(number, getattr(owner, name), times))
        with pytest.raises(store.SaveError, match=message) as failure:
            save(tmp_path, 2)
    assert failure.value.exit_code == 1
    assert names(tmp_path) == ["step-00000001.safetensors"]
    store.verify(tmp_path / "step-00000001.safetensors")
    save(tmp_path, 2)  # The control: without the fault the save works.
    assert list(store.steps(tmp_path)) == [1, 2]


def test_a_received_checkpoint_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    content, folder = save(tmp_path / "sent", 2).read_bytes(), tmp_path / "received"
    folder.mkdir()
    calls = Mock()
    calls.fsync.side_effect, calls.replace.side_effect = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", calls.fsync)
    monkeypatch.setattr(Path, "replace", lambda self, target: calls.replace(self, target))
    store.verify(store.receive(folder, 2, lambda write: write(content)))
    assert [name for name, *_ in calls.mock_calls] == ["fsync", "replace", "fsync"]  # The last is of the folder.


def test_failed_sync_of_the_folder(tmp_path, monkeypatch):
    """EINVAL means that the file system cannot sync folders. Any other error is one."""
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, sync, 2))
    with pytest.raises(store.SaveError):
        save(tmp_path, 2)
    assert [name for name in names(tmp_path) if name.startswith(".")] == []
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL, sync, 2))
    store.verify(save(tmp_path, 2))


def test_other_exceptions_leave_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert names(tmp_path) == []


def test_short_writes_are_finished(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:5]))
    path = save(tmp_path, 2)
    monkeypatch.undo()
    store.verify(path)


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (100_000_000, 9, 99_999_999, 10):
        save(tmp_path, step)
    for other in ("step-7.safetensors", "step-00000008.safetensors.corrupt", ".step-00000006.safetensors.tmp"):
        (tmp_path / other).touch()
    assert list(store.steps(tmp_path)) == [9, 10, 99_999_999, 100_000_000]
    assert store.newest_valid(tmp_path).path == tmp_path / "step-100000000.safetensors"
    for nothing in (tmp_path / "nowhere", tmp_path / "empty"):
        assert store.steps(nothing) == {}
        assert store.newest_valid(nothing) == (None, [], [])
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "empty" / ".step-00000001.safetensors.tmp").touch()


def test_a_damaged_newest_is_skipped_with_a_warning(tmp_path):
    for step in (1, 2, 3):
        path = save(tmp_path, step)
    store.update_link(tmp_path, "last", path)
    flip_bit(path, -1)
    before = names(tmp_path)
    for _ in range(2):  # The folder stays unchanged until the start is accepted.
        found, warnings, damaged = store.newest_valid(tmp_path)
        assert found == tmp_path / "step-00000002.safetensors"
        assert len(warnings) == 1
        assert str(path) in warnings[0]
        assert "damaged" in warnings[0]
        assert names(tmp_path) == before
    store.mark_corrupt(damaged)
    assert names(tmp_path) == [
        "last.safetensors.corrupt",
        "step-00000001.safetensors",
        "step-00000002.safetensors",
        "step-00000003.safetensors.corrupt",
    ]
    assert store.newest_valid(tmp_path) == (found, [], [])


def test_all_damaged_is_an_error_and_never_a_fresh_start(tmp_path):
    for step in (1, 2):
        flip_bit(save(tmp_path, step), -1)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as failure:
        store.newest_valid(tmp_path)
    assert "step-00000001" in str(failure.value)
    assert "step-00000002" in str(failure.value)
    assert failure.value.exit_code == 4


def separate(folder, step, name):
    """Write a checkpoint under the name of a link only, as on a file system without hard links."""
    return save(folder, step).rename(folder / f"{name}.safetensors")


def test_the_newest_by_step_wins_among_all_names(tmp_path):
    """A link may be the only copy. Renamed files are no candidates."""
    best, last = separate(tmp_path, 7, "best"), separate(tmp_path, 9, "last")
    for name in ("step-00000011.safetensors.superseded", "best.superseded-1.safetensors", "earlier-1"):
        save(tmp_path, 11).rename(tmp_path / name)
    older = save(tmp_path, 4)
    assert store.newest_valid(tmp_path).path == last
    flip_bit(last, -1)
    assert store.newest_valid(tmp_path)[::2] == (best, [last])
    newest = save(tmp_path, 7)
    assert store.newest_valid(tmp_path).path == newest  # At equal steps, the step file wins.
    for path in (newest, best):
        flip_bit(path, -1)
    assert store.newest_valid(tmp_path)[::2] == (older, [last, newest, best])


def test_the_step_inside_counts_and_not_the_name(tmp_path):
    newest = save(tmp_path, 6)
    save(tmp_path, 4).rename(tmp_path / "step-00000010.safetensors")
    assert store.newest_valid(tmp_path).path == newest


def test_a_broken_link_is_skipped(tmp_path):
    path = save(tmp_path, 1)
    store.update_link(tmp_path, "last", path)
    (tmp_path / "step-00000002.safetensors").symlink_to(tmp_path / "nowhere")
    found, (warning,), damaged = store.newest_valid(tmp_path)
    assert (found, damaged) == (path, [])
    assert "step-00000002.safetensors" in warning
    assert "No such file or directory" in warning
    for pointer in (path, tmp_path / "last.safetensors"):
        pointer.unlink()
    with pytest.raises(CheckpointError, match="step-00000002"):
        store.newest_valid(tmp_path)


def test_retire_best_keeps_the_file(tmp_path):
    assert store.retire_best(tmp_path) is None
    for step in (1, 2):
        store.update_link(tmp_path, "best", save(tmp_path, step))
        assert store.retire_best(tmp_path) == tmp_path / f"best.superseded-{step}.safetensors"
    assert [store.verify(tmp_path / f"best.superseded-{step}.safetensors")["step"] for step in (1, 2)] == ["1", "2"]
    assert not (tmp_path / "best.safetensors").exists()


def test_unreadable_file_keeps_its_name(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        # The first two opens read the headers for the order, the third the content of the newest.
        patch.setattr("seresnext.files.open_regular", failing(errno.EACCES, open_regular, 3))
        found, warnings, damaged = store.newest_valid(tmp_path)
    assert (found, damaged) == (tmp_path / "step-00000001.safetensors", [])
    assert "cannot be read" in warnings[0]
    assert list(store.steps(tmp_path)) == [1, 2]


def test_update_link_replaces_the_link(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    store.update_link(tmp_path, "best", first)
    best = tmp_path / "best.safetensors"
    assert best.samefile(first)
    store.update_link(tmp_path, "best", first)  # The same again: a rename of a file to itself leaves both names.
    assert best.samefile(first)
    store.update_link(tmp_path, "best", second)
    assert best.samefile(second)
    assert names(tmp_path) == ["best.safetensors", first.name, second.name]


def test_update_link_copies_if_links_fail(tmp_path, monkeypatch):
    """A crash may have left a link to an old checkpoint under the temporary name. No copy writes through this link."""
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    os.link(first, tmp_path / ".last.safetensors.tmp")
    monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))
    last = tmp_path / "last.safetensors"
    for path in (second, first):
        store.update_link(tmp_path, "last", path)
        assert not last.samefile(path)
        assert last.read_bytes() == path.read_bytes()
    assert [store.verify(path)["step"] for path in (first, second)] == ["1", "2"]
    assert len(names(tmp_path)) == 3


def test_a_failed_update_keeps_the_old_link(tmp_path, monkeypatch):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    store.update_link(tmp_path, "last", first)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing(errno.EIO, Path.replace))
        with pytest.raises(store.SaveError, match=r"last\.safetensors could not be saved"):
            store.update_link(tmp_path, "last", second)
    assert (tmp_path / "last.safetensors").samefile(first)
    assert names(tmp_path) == ["last.safetensors", first.name, second.name]


def test_prune_keeps_the_newest_and_what_is_pointed_to(tmp_path):
    for step in (8, 9, 10, 11):
        path = save(tmp_path, step)
        if step == 8:
            store.update_link(tmp_path, "best", path)
    store.update_link(tmp_path, "last", path)
    kept = tmp_path / "step-00000009.safetensors"
    store.prune(tmp_path, 1, keep_every=3)
    assert names(tmp_path) == ["best.safetensors", "last.safetensors", kept.name, path.name]
    assert store.read(tmp_path / "best.safetensors")[1]["step"] == "8"
    store.prune(tmp_path, 5)
    assert len(names(tmp_path)) == 4


def test_remove_temporary_removes_only_temporary_files_of_checkpoints(tmp_path):
    save(tmp_path, 1)
    ours = [".best.safetensors.tmp", ".last.safetensors.tmp", ".step-00000002.safetensors.tmp"]
    for name in [*ours, ".other.tmp", "step-00000003.safetensors.tmp"]:
        (tmp_path / name).touch()
    store.remove_temporary(tmp_path)
    assert names(tmp_path) == [".other.tmp", "step-00000001.safetensors", "step-00000003.safetensors.tmp"]
    store.remove_temporary(tmp_path / "nowhere")


def test_mark_superseded_renames_later_steps_and_links(tmp_path):
    """The step files of later links may be removed already. A resumed run must not keep a later best."""
    for step in (1, 2, 3):
        path = save(tmp_path, step)
        store.update_link(tmp_path, "last", path)
        if step < 3:
            store.update_link(tmp_path, "best", path)
    (tmp_path / "step-00000002.safetensors").unlink()
    renamed = [f"{name}.safetensors.superseded" for name in ("step-00000003", "last", "best")]
    assert [path.name for path in store.mark_superseded(tmp_path, beyond=1)] == renamed
    assert names(tmp_path) == sorted([*renamed, "step-00000001.safetensors"])
    store.update_link(tmp_path, "best", tmp_path / "step-00000001.safetensors")
    (tmp_path / "last.safetensors").write_bytes(b"nothing")
    assert store.mark_superseded(tmp_path, beyond=1) == []  # Other links stay.
