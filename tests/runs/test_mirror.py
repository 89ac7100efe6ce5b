"""Runs that lose their machine: the next machine has an empty run folder, and the mirror."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from faults import Fault, Faults
from run_folders import digest, events, last_tensors, losses, status
from stand_in_s3 import stand_in_s3

from seresnext.metrics.status import read_status

pytestmark = pytest.mark.runs
full = pytest.mark.full


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with stand_in_s3("runs"):
        yield "s3://runs"


def manifests(address: str, step: int) -> list[str]:
    """Return the paths of the manifests of a step, without a program of the project."""
    files, root = fsspec.core.url_to_fs(address)
    files.invalidate_cache()
    return sorted(files.glob(f"{root}/*/step-{step:08d}-*.json"))


@pytest.fixture
def lose_machine(start_faulty: Callable[..., tuple[Any, Faults]]) -> Callable[..., None]:
    """`lose_machine(run, address, step, world, *more)`: train until the mirror has a step, then kill all processes."""

    def lose(run: Path, address: str, step: int, world: int, *more: str) -> None:
        mirror = ("--set", f"checkpoint.mirror={address}")
        command, _ = start_faulty(run, Fault(f"step:{step + 1}", "hold"), world=world, more=[*mirror, *more])
        command.wait_for(lambda: read_status(run).get("mirrored_step") == step and manifests(address, step))
        command.kill()

    return lose


@full
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_continues_on_another_machine_with_the_same_bits(
    lose_machine, run_again, whole_digest, bucket: str, tmp_path: Path, world: int
):
    """A half upload and a corrupt one, both of later steps, are passed over."""
    address, run = f"{bucket}/world{world}", tmp_path / "second"
    lose_machine(tmp_path / "first", address, 4, world)
    files = fsspec.filesystem("s3")
    manifest = manifests(address, 4)[-1]
    corrupt, half = (manifest.replace("step-00000004", f"step-0000000{step}") for step in (5, 6))
    files.copy(manifest, corrupt)
    for name in (corrupt, half):
        files.pipe_file(name.replace(".json", ".safetensors"), b"half")
    result = run_again(run, "--set", f"checkpoint.mirror={address}", world=world)
    assert result.returncode == 0, result.output
    assert f"{address} has a damaged checkpoint of step 5" in result.stdout
    assert f"fetched the checkpoint of step 4 from {address}" in result.stdout
    assert f"{address} has the checkpoint of step 8" in result.stdout
    assert digest(run) == whole_digest(world)
    assert len(losses(run)) == 8  # The metrics of the first machine came along.
    assert status(run)["mirrored_step"] == 8


def test_a_signal_to_all_processes_leaves_the_upload(faulty, tmp_path: Path):
    """As from a scheduler that stops each process of a job."""
    run, place = tmp_path / "run", tmp_path / "mirror"
    result = faulty(run, Fault("step:5", "group:SIGTERM"), world=1, more=["--set", f"checkpoint.mirror={place}"])
    assert (result.returncode, status(run)["state"]) == (0, "preempted"), result.output
    assert f"{place} has the checkpoint of step {status(run)['step']}" in result.stdout
    assert manifests(str(place), status(run)["step"])


@full
@pytest.mark.parametrize("delay", [0, 3], ids=["during the imports", "during the upload"])
def test_a_killed_training_leaves_no_upload_behind(start_faulty, tmp_path: Path, delay: int):
    """The upload hangs in a pipe that nobody reads. `finish` fails if a process is left."""
    run, place, name = tmp_path / "run", tmp_path / "mirror", "c" * 32
    for folder in (run, place / name):
        folder.mkdir(parents=True)
    (run / "mirror.json").write_text(f'{{"run": "{name}"}}')
    os.mkfifo(place / name / "step-00000004-000001-0001.safetensors")
    mirror = ("--set", f"checkpoint.mirror={place}")
    command, _ = start_faulty(run, Fault("step:5", "hold"), world=1, more=mirror)
    command.wait_for(lambda: any(is_upload(pid) for pid in command.alive()))
    time.sleep(delay)
    os.kill(command.process.pid, signal.SIGKILL)
    assert command.finish().returncode == -signal.SIGKILL


def is_upload(pid: int) -> bool:
    try:
        return b"mirror_files" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@full
def test_a_run_that_follows_the_offers(lose_machine, run_again, train, tmp_path: Path):
    """Machines with 4, 2 and 1 processes, each lost with its run folder; float64, so that rounding stays small.

    tests/runs/test_elastic.py explains the tolerance and has the controls.
    """
    # BatchNorm over 2 images, as in SIZES[4], would multiply a difference by thousands in some steps.
    changes = ["batch={global_size: 24, micro_size: 6}", "data.image_size=48", "runtime.precision=fp64", "length=12st"]
    settings = [word for change in changes for word in ("--set", change)]
    whole = train(tmp_path / "whole", *settings)
    address = str(tmp_path / "mirror")
    for world, step in ((4, 4), (2, 8)):
        lose_machine(tmp_path / f"machine{world}", address, step, world, *settings)
    run = tmp_path / "machine1"
    result = run_again(run, "--set", f"checkpoint.mirror={address}", *settings, world=1)
    assert "fetched the checkpoint of step 8" in result.stdout
    assert (status(run)["state"], len(losses(run))) == ("finished", 12)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-9, abs=0)
    moved, unbroken = (events(folder, "validate") for folder in (run, whole))
    assert [event["top1"] for event in moved] == [event["top1"] for event in unbroken]
    ours, theirs = last_tensors(run), last_tensors(whole)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-9
    assert losses(run) != losses(whole)  # Rounding differs, so the test compares two runs.
