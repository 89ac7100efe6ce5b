"""The machine misbehaves: no space, no permission, few descriptors, another time, another training in the folder."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from conftest import needs
from faults import SIZES, Fault, one_error
from run_folders import digest, losses, status

from seresnext.checkpoint import store

pytestmark = pytest.mark.runs
full = pytest.mark.full
SMALL_DISK = 12 << 20  # bytes: two checkpoints of the narrow model and a part of the third


def can_mount():
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


needs_mounts = needs(can_mount(), "needs `unshare -rm`, a namespace to mount a small disk in")


def small_disk(folder, size):
    """Return a command prefix: only the command and its descendants see a disk of `size` bytes at `folder`."""
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o size={size} none "{folder}" && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", script, "sh"]


# ------------------------------------------------------------------------------------------------ space


LIMIT = ("save:6", "file-size:1000000")  # RLIMIT_FSIZE, like a quota.


@pytest.mark.parametrize(
    ("world", "stopping", "passing"),
    [
        (1, LIMIT, "EROFS"),
        pytest.param(3, ("write:6", "error:EDQUOT"), "EIO", marks=full),
        pytest.param(3, LIMIT, "ENOSPC", marks=full),
        pytest.param(2, ("write:6", "error:EIO"), "EDQUOT", marks=full),
        pytest.param(4, ("write:6", "error:EROFS"), "ENOSPC", marks=full),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_a_save_that_fails(faulty, whole_digest, tmp_path, world, stopping, passing):
    """All ranks stop. With `checkpoint.on_failure=continue`, all ranks continue after the next failed save.

    The failed save has no validation, so the best checkpoint stays. No partial file stays.
    """
    run = tmp_path / "run"
    more = [*SIZES[world], "--set", "checkpoint.every=2st"]
    result = faulty(run, Fault(*stopping), world=world, more=more, timeout=90)
    assert result.returncode != 0  # To stop is the default.
    error = one_error(result)
    assert "step-00000006.safetensors could not be saved: " in error
    assert ("File too large" in error) is (stopping == LIMIT)
    assert status(run)["state"] == "failed"
    assert "could not be saved" in status(run)["reason"]
    assert list(store.steps(run / "checkpoints")) == [2, 4]
    assert not list((run / "checkpoints").glob(".*"))
    more += ["--set", "checkpoint.on_failure=continue"]
    result = faulty(run, Fault("write:6", f"error:{passing}"), world=world, more=more, timeout=90)
    assert result.returncode == 0, result.output
    assert "could not be saved" in result.output
    assert "Training continues without this checkpoint" in result.stdout
    assert list(store.steps(run / "checkpoints")) == [2, 4, 8]
    assert not list((run / "checkpoints").glob(".*"))
    assert digest(run) == whole_digest(world, *SIZES[world])


@needs_mounts
@full
def test_a_disk_that_is_full(faulty, tmp_path):
    """A real, small disk holds the whole run. The run ends as failed, and the error names the disk.

    A second start, as by torchrun, ends in the same way when not one byte is free.
    """
    disk = tmp_path / "disk"
    look = (
        f'"$@"; code=$?; cp -r {disk}/run/. {tmp_path}/seen; cat /dev/zero > {disk}/filler; '
        f'"$@" > {tmp_path}/again 2>&1; echo $? >> {tmp_path}/again; cp {disk}/run/status.json {tmp_path}; exit $code'
    )
    prefix = [*small_disk(disk, SMALL_DISK), "sh", "-c", look, "sh"]
    run = disk / "run"
    result = faulty(run, world=1, more=["--set", "checkpoint.every=1st"], prefix=prefix)
    assert result.returncode == 1, result.output
    assert "could not be saved: No space left on device; older files are unchanged; make room" in one_error(result)
    seen = tmp_path / "seen"
    assert store.newest_valid(seen / "checkpoints").warnings == []
    assert len(store.steps(seen / "checkpoints")) >= 1
    assert not list((seen / "checkpoints").glob(".*"))
    assert status(seen)["state"] == "failed"
    said = (tmp_path / "again").read_text()
    assert "Traceback" not in said
    assert said.count("error: ") == 1, said
    assert f"error: cannot write to the run folder {run}: No space left on device ({run}/" in said
    assert "; make room there" in said
    assert said.splitlines()[-1] == "2"
    assert status(tmp_path)["reason"].startswith("cannot write ")


@needs_mounts
@full
def test_shared_memory_that_is_full(start_command, train_arguments, tmp_path):
    prefix = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=16k none /dev/shm && exec "$@"', "sh"]
    result = start_command([*prefix, sys.executable, *train_arguments(tmp_path / "run")]).finish(60)
    assert result.returncode == 3, result.output
    assert "shm" in one_error(result)


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("world", [1, *(pytest.param(world, marks=full) for world in (2, 3, 4))])
def test_two_trainings_in_one_folder(start_faulty, faulty, whole_digest, tmp_path, world):
    """The second training is refused, names the first, and does not disturb the first."""
    run, more = tmp_path / "run", SIZES[world]
    first, faults = start_faulty(run, Fault("step:3", "hold"), world=1, more=more)
    first.wait_for(faults.happened)
    before = (run / "status.json").read_bytes()
    second = faulty(run, world=world, more=[*more, "--resume", "never"], timeout=60)
    assert second.returncode == (2 if world == 1 else 1)
    assert f"is in use by process {first.process.pid} on {socket.gethostname()}" in one_error(second)
    assert (run / "status.json").read_bytes() == before
    assert status(run)["state"] == "running"
    faults.release()
    assert first.finish().returncode == 0
    assert digest(run) == whole_digest(1, *more)


# ------------------------------------------------------------------------------------------------ clock and environment


@full
@pytest.mark.parametrize("seconds", [-86_400, 31_536_000])
def test_a_clock_that_jumps(start_faulty, assert_resumes, tmp_path, seconds):
    """Checkpoints are ordered by step and durations taken from another clock: the jump shows nowhere."""
    run = tmp_path / "run"
    faults = [Fault("step:2", f"clock:{seconds}"), Fault("step:6", "signal:SIGTERM")]
    command, _ = start_faulty(run, *faults, world=1)
    result = command.finish()
    assert (result.returncode, status(run)["state"]) == (0, "preempted"), result.output
    for path in (run / "checkpoints").glob("step-00000004*"):
        os.utime(path, (2**33, 2**33))  # The older one claims to be of the year 2242.
    speeds = re.findall(r"([\d.]+) images/s", result.stdout)
    assert speeds
    assert all(0 < float(speed) < 1000 for speed in speeds)
    assert_resumes(run, 1)


@full
@pytest.mark.parametrize(
    "shell", [f"{{}} {end}" for end in (">&-", "2>&-", ">&- 2>&-", "| head -c 1", "> /dev/full")] + ["ulimit -n 64; {}"]
)
def test_output_that_goes_nowhere_and_few_descriptors(run_command, narrow_arguments, tmp_path, shell):
    run = tmp_path / "run"
    command = shell.format(" ".join([sys.executable, *narrow_arguments(run)]))
    result = run_command(["bash", "-o", "pipefail", "-c", command])
    assert result.returncode == 0, result.output
    assert "Traceback" not in result.output
    assert status(run)["state"] == "finished"
    assert len(losses(run)) == 8


@full
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_loader_worker_that_is_lost(faulty, assert_resumes, tmp_path, name):
    run = tmp_path / "run"
    more = ["--set", "runtime.loader_timeout=5"]
    result = faulty(run, Fault("step:3", f"worker:{name}", rank=1), more=more, timeout=90)
    assert result.returncode not in (0, -signal.SIGKILL)
    assert "loader worker" in one_error(result)
    assert status(run)["state"] == "failed"
    assert_resumes(run)
