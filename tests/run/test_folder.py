"""The run folder: one training at a time, no loss of an earlier run, and atomic writes of small files."""

import errno
import fcntl
import gc
import json
import os
import re
import weakref
from pathlib import Path

import pytest
from launcher import PYTHON

from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.status import read_status, write_status
from seresnext.recipe.schema import DataSection
from seresnext.run.folder import RUN_FILES, RunFolder, check_output, record_refusal

ROOT = Path(__file__).parents[2]

# The lock is held while its file is open. Only the end of the folder object or of the process closes the file.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "first"


def opened(path, fresh=False):
    folder = RunFolder(path, World())
    folder.open()
    if fresh:
        folder.accept(starts_over=True)
    return folder


def listing(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file())


def test_a_killed_training_holds_nothing(path, start_command, tmp_path):
    (tmp_path / "hold.py").write_text(f"""
import sys, time
from pathlib import Path
from seresnext.distributed import World
from seresnext.run.folder import RunFolder
folder = RunFolder(Path({str(path)!r}), World())
folder.open()
print("open", flush=True)
time.sleep(60)
""")
    holder = start_command([PYTHON, tmp_path / "hold.py"])
    holder.wait_for(lambda: holder.output == "open\n")
    with pytest.raises(UsageError, match=f"process {holder.process.pid} on "):
        opened(path)
    holder.kill()
    opened(path)


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc/nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "link"):
        with pytest.raises(UsageError, match=f"cannot write to the run folder {re.escape(str(path))}: .*--output"):
            opened(path)


@pytest.mark.parametrize("why", ["a run", "somebody's file", "accepted", "another rank", "no locks"])
def test_a_refused_start_leaves_a_folder_in_use(path, why, monkeypatch):
    path.mkdir(parents=True)
    if why == "a run":
        (path / "metrics.jsonl").touch()
    if why == "no locks":  # Another training may use the folder.
        monkeypatch.setattr("fcntl.flock", no_locks)
    folder = RunFolder(path, World(rank=1, size=2)) if why == "another rank" else opened(path)
    if why == "accepted":
        folder.accept()
    if why == "somebody's file":
        (folder.checkpoints / "notes.txt").touch()
    before = listing(path)
    assert folder.discard() == (why == "somebody's file")
    assert listing(path) == before


def test_a_removed_lock_file_is_replaced(path, monkeypatch):
    """A refused start removes the folder after a second start opened the lock. The second start makes both again."""
    first, real = opened(path), fcntl.flock
    waiting = [first]

    def flock(file, operation):
        if waiting:
            waiting.pop().discard()
        real(file, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    second = opened(path)
    assert second.checkpoints.is_dir()
    with pytest.raises(UsageError, match="in use"):
        opened(path)


def test_a_refusal_before_the_lock_is_recorded_unless_the_folder_is_in_use(path):
    path.mkdir(parents=True)
    record_refusal(path, "no run was here")
    assert listing(path) == []
    write_status(path, World(), "running", 7, None)
    (path / "lock").touch()
    record_refusal(path, "the recipe\nhas a problem")
    found = read_status(path)
    assert (found["state"], found["step"], found["reason"]) == ("failed", 7, "the recipe\nhas a problem")
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+ error: the recipe\n\S+ has a problem\n$", (path / "log.txt").read_text())
    assert listing(path) == ["lock", "log.txt", "status.json"]
    folder = opened(path)
    folder.write_status("running", 8)
    before = {name: (path / name).read_bytes() for name in listing(path)}
    record_refusal(path, "the recipe has a problem")
    assert {name: (path / name).read_bytes() for name in listing(path)} == before


@pytest.mark.parametrize("what", ["a folder", "endless", "too large"])
def test_metrics_that_cannot_be_continued_are_found_first(path, what):
    folder = opened(path)
    folder.check_writable()  # Control.
    assert listing(path) == ["lock"]
    metrics = path / "metrics.jsonl"
    if what == "too large":
        metrics.touch()
        os.truncate(metrics, (1 << 30) + 1)  # A sparse file takes no space.
    else:
        metrics.mkdir() if what == "a folder" else metrics.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        folder.check_writable()
    folder.check_writable(starts_over=True)  # With --resume never the file is only moved.


def test_a_run_folder_among_the_data_is_refused(tmp_path):
    """Links are resolved on both sides. Data inside the run folder is refused, too."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (data / "train").mkdir(parents=True)
    (data / "val").symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(data)
    section = DataSection(root=str(data))
    inside = [data, data / "train" / "run", data / "new" / "run", elsewhere / "run", tmp_path / "link" / "x"]
    inside += [tmp_path / "data" / ".." / "data", tmp_path / "x" / ".." / "data" / "run"]
    for output in inside:
        with pytest.raises(UsageError, match=re.escape(str(output))):
            check_output(output, section)
    with pytest.raises(UsageError, match="overlap"):
        check_output(tmp_path, DataSection(root=str(tmp_path / "checkpoints" / "data")))
    with pytest.raises(UsageError, match="null"):
        check_output(Path("a\0b"), section)
    for output in (tmp_path, tmp_path / "data2", tmp_path / "run" / "x", Path("run")):
        check_output(output, section)
    check_output(data, section.model_copy(update={"format": "synthetic"}))
    check_output(Path("s3:", "bucket"), DataSection(root="s3://bucket"))


def test_only_what_a_run_writes_is_set_aside(path):
    """All other files are the user's: data, notes, a repository. A folder without a run has nothing to set aside."""
    files = [name if "." in name else f"{name}/file" for name in (*RUN_FILES, "status.json")]
    for name in (*files, ".git/HEAD", "train/a/1.jpg", "notes.txt", "earlier-1/recipe.yaml"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    folder = opened(path, fresh=True)
    with pytest.raises(UsageError, match="in use"):  # The lock stays here.
        opened(path)
    assert list(folder.checkpoints.iterdir()) == []
    here = {".git", "train", "notes.txt", "earlier-1", "earlier-2", "lock", "status.json", "checkpoints"}
    assert {entry.name for entry in path.iterdir()} == here
    assert {entry.name for entry in (path / "earlier-2").iterdir()} == set(RUN_FILES)
    other = path / "other"
    (other / "report").mkdir(parents=True)
    (other / "log.txt").touch()
    opened(other, fresh=True)
    assert listing(other) == ["lock", "log.txt"]


def is_restart(path, *launchers):
    """Start a run under torchrun, and return whether the start is a restart."""
    folder = opened(path)
    known = folder.is_restart(list(launchers))
    folder.write("environment.json", json.dumps({"launch": launchers}))
    return known


def test_a_launch_that_starts_again_is_known_by_any_of_its_launchers(path):
    """Machines join and leave a launch, and rank 0 may move to another machine."""
    assert not is_restart(path, "a 1:1:1")
    assert is_restart(path, "a 1:1:1", "a 2:2:2")
    assert is_restart(path, "a 2:2:2")
    assert not is_restart(path, "a 3:3:3")
    assert not is_restart(path, None)
    assert not is_restart(path, None)  # Without torchrun there is no launch.


def test_an_environment_without_a_launch(path):
    folder = opened(path)
    environment = path / "environment.json"
    for content in (b"", b"[]", b"{}", b'{"launch": "a 1:1:1"}', b'{"launch": null}'):
        environment.write_bytes(content)
        assert not folder.is_restart(["a 1:1:1"])


def test_other_ranks_write_nothing(path):
    folder = RunFolder(path, World(rank=1, size=2))
    folder.open()
    folder.accept(starts_over=True)
    folder.write("recipe.yaml", "recipe")
    folder.write_status("running", 0)
    assert not path.exists()


@pytest.mark.parametrize(
    ("meanwhile", "state"),
    [({}, "failed"), ({"started": "2999-01-01T00:00:00+00:00"}, "running"), ({"state": "finished"}, "finished")],
)
def test_a_failure_belongs_to_the_start_that_failed(path, meanwhile, state):
    """A machine that was cut off can report a failure after the others have started, or ended, the run again."""
    folder = opened(path, fresh=True)

    def run():
        (path / "status.json").write_text(json.dumps({**read_status(path), **meanwhile}))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), folder.tracking_status(Console(enabled=False), lambda: 7):
        run()
    assert read_status(path)["state"] == state


def test_the_heartbeat_of_a_world_does_not_keep_the_folder_after_its_run(path):
    world = World()
    folder = RunFolder(path, world)
    folder.open()
    with folder.tracking_status(Console(enabled=False), lambda: 7):
        assert (
            world.heartbeat.advice()
            == "No checkpoint of this run is saved yet, so a resume starts where this run started"
        )
    assert world.heartbeat.advice() == "Run the same command again"
    kept = weakref.ref(folder)
    del folder
    gc.collect()
    assert kept() is None


def test_what_the_system_refuses_says_what_to_do(path, monkeypatch):
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("old")
    folder = opened(path)

    def fail(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    for name in ("replace", "rename"):
        monkeypatch.setattr(Path, name, fail)
    for write in (
        lambda: folder.write("recipe.yaml", "new"),
        lambda: folder.accept(starts_over=True),
        folder.check_writable,
    ):
        words = rf"cannot write to the run folder {path}: No space left on device \({path}/.*\); "
        with pytest.raises(UsageError, match=f"{words}make room there, or choose another with --output"):
            write()
    assert (path / "recipe.yaml").read_text() == "old"


def test_temporary_files_are_removed_unless_the_system_refuses(path, monkeypatch):
    folder = opened(path)
    leftover = folder.checkpoints / ".step-00000001.safetensors.tmp"
    leftover.touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, **options: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
        with pytest.raises(UsageError, match="read-only"):
            folder.accept()
    RunFolder(path, World(rank=1, size=2)).accept()
    assert leftover.exists()
    folder.accept()
    assert not leftover.exists()


def test_a_lock_without_room_for_its_holder_holds(path):
    """The lock works on a full disk, too."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path.mkdir(parents=True)
    (path / "lock").symlink_to("/dev/full")
    opened(path)


def no_locks(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_file_system_without_locks_is_a_notice(path, monkeypatch):
    """Another training may then use a folder with the status `running`."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    notice = RunFolder(path, World()).open()
    assert "No locks available" in notice
    for state, expected in (("running", "running"), ("preempted", "failed")):
        write_status(path, World(), state, 7, None)
        record_refusal(path, "the recipe has a problem")
        assert read_status(path)["state"] == expected
