"""Checkpoints are damaged between two starts: the newest good one is used, by all ranks, or the run is refused."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import ROOT
from faults import Fault
from run_folders import digest, status

from seresnext.checkpoint import store

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The folder of the run that `stopped` copies. The first test that needs the run makes it."""
    return tmp_path_factory.mktemp("original") / "run"


@pytest.fixture
def stopped(start_faulty, original, tmp_path):
    """A run that stopped after step 6 of 8, with the checkpoints of steps 4 and 6."""
    if not original.exists():
        command, _ = start_faulty(original, Fault("step:4", "signal:SIGTERM"), world=1)
        assert command.finish().returncode == 0
        assert status(original)["step"] == 6
    subprocess.run(["cp", "-a", original, tmp_path], check=True)  # Two names of one file stay that.
    return tmp_path / "run"


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def cut(path, share):
    """Cut a file, as a full disk or an aborted copy does. All hard links show the change."""
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * place))
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, 0.5),
        pytest.param(lambda path: flip(path, 0.0001), marks=pytest.mark.full),
        pytest.param(lambda path: cut(path, 0), marks=pytest.mark.full),
        pytest.param(lambda path: cut(path, 0.01), marks=pytest.mark.full),
        pytest.param(lambda path: cut(path, 0.5), marks=pytest.mark.full),
        pytest.param(lambda path: cut(path, 0.99), marks=pytest.mark.full),
    ],
    ids=["bit", "bit-of-header", "empty", "1%", "50%", "99%"],
)
def test_a_damaged_newest_is_passed_over(stopped, run_again, whole_digest, damage):
    damage(stopped / "checkpoints" / "step-00000006.safetensors")
    result = run_again(stopped)
    assert result.returncode == 0, result.output
    assert "warning" in result.stdout
    assert "resuming from" in result.stdout
    assert "step-00000004.safetensors, after step 4 of 8" in result.stdout
    assert "step-00000006.safetensors.corrupt" in names(stopped)
    assert digest(stopped) == whole_digest(1)


@pytest.mark.parametrize("world", [3, *(pytest.param(world, marks=pytest.mark.full) for world in (2, 4))])
def test_in_every_world(start_faulty, run_again, whole_digest, tmp_path, world):
    """The newest is damaged, all ranks resume from the checkpoint before, and the recipe decides the files to keep."""
    run = tmp_path / "run"
    more = ["--set", f"batch.global_size={4 * world}", "--set", "length=6st"]
    more += ["--set", "checkpoint={every: 1st, keep: 2, keep_every: 2st}"]
    command, _ = start_faulty(run, Fault("save:3", "signal:SIGTERM"), world=world, more=more)
    assert command.finish().returncode == 0
    newest = status(run)["step"]
    assert newest < 6
    flip(store.steps(run / "checkpoints")[newest], 0.5)
    result = run_again(run, *more, world=world)
    assert result.returncode == 0, result.output
    assert f"after step {newest - 1} of 6" in result.stdout
    assert digest(run) == whole_digest(world, *more)
    assert list(store.steps(run / "checkpoints")) == [2, 4, 5, 6]
    for name in store.POINTERS:
        store.verify(run / "checkpoints" / f"{name}.safetensors")


@pytest.mark.parametrize("world", [3, *(pytest.param(world, marks=pytest.mark.full) for world in (1, 2, 4))])
def test_what_is_refused_is_refused_once_in_every_world(faulty, run_again, tmp_path, world):
    """A changed recipe, then checkpoints of which none is valid."""
    run = tmp_path / "run"
    more = ["--set", "batch={global_size: 24, micro_size: 2}", "--set", "length=1st", "--set", "schedule.warmup=0ep"]
    assert faulty(run, world=1, more=more).returncode == 0
    refusals = [(["--set", "optimizer.lr=0.5"], 2, "optimizer.lr: 0.002 -> 0.5")]
    refusals += [([], 4, "checkpoints in")]
    for changed, code, words in refusals:
        if not changed:
            for path in (run / "checkpoints").iterdir():
                flip(path, 0.9)
        result = run_again(run, *more, *changed, world=world)
        assert result.returncode == code if world == 1 else result.returncode != 0
        (error,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
        assert words in result.stderr, error
        assert f"{ROOT}/seresnext" not in result.stderr
        assert status(run)["state"] == "failed"
        assert not status(run)["reason"].startswith("rank")  # All ranks see the problem, so the reason names no rank.
        assert words in (run / "log.txt").read_text()


@pytest.mark.full
def test_ranks_that_see_different_files_refuse(stopped, train_elsewhere, tmp_path):
    """Both are valid and of one name, but not of one content."""
    for rank in range(2):
        shutil.copytree(stopped, tmp_path / str(rank) / "run")
    other = tmp_path / "1" / "run" / "checkpoints"
    (other / "step-00000004.safetensors").replace(other / "step-00000006.safetensors")
    result = train_elsewhere("run", "--set", "runtime.precision=fp32", "--set", "evaluation.batch_size=2")
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, result.output
    assert "is not the same file on every rank" in errors[0]
    assert status(tmp_path / "0" / "run")["state"] == "failed"


def test_all_damaged_is_refused_once(stopped, run_again):
    """In a world: rank 0 notices the damage, all ranks end, and one prints the error."""
    for path in (stopped / "checkpoints").glob("step-*"):
        flip(path, 0.9)
    before = (stopped / "metrics.jsonl").read_bytes()
    result = run_again(stopped, world=2)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, result.output
    assert "none of the 2 checkpoints" in errors[0]
    assert f"{ROOT}/seresnext" not in result.stderr
    assert (stopped / "metrics.jsonl").read_bytes() == before
    assert run_again(stopped).returncode == 4  # Again, after the names were marked as damaged.


@pytest.mark.full
def test_swapped_names(stopped, run_again, whole_digest):
    """The step inside the file counts: the run resumes from the file named step 4, which has step 6."""
    newer, older = (stopped / "checkpoints" / f"step-0000000{step}.safetensors" for step in (6, 4))
    newer.rename(newer.with_suffix(".aside"))
    older.rename(newer)
    newer.with_suffix(".aside").rename(older)
    result = run_again(stopped)
    assert result.returncode == 0, result.output
    assert "after step 6 of 8" in result.stdout
    assert digest(stopped) == whole_digest(1)
