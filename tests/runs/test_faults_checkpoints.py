"""Checkpoints are damaged between two starts: the newest good one is used, by all ranks, or the run is refused."""

import os
import subprocess

import pytest
from damage import flip_bit
from faults import Fault, one_error
from run_folders import digest, status

from seresnext.checkpoint import store

pytestmark = pytest.mark.runs
full = pytest.mark.full


@pytest.fixture(scope="module")
def original(tmp_path_factory):
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


def cut(path, share):
    """Cut a file, as a full disk or an aborted copy does. All hard links show the change."""
    os.truncate(path, int(path.stat().st_size * share))


def flip(path, place):
    flip_bit(path, int(path.stat().st_size * place), 2)


@pytest.mark.parametrize(
    ("damage", "place"),
    [(flip, 0.5), *(pytest.param(*case, marks=full) for case in [(flip, 0.0001), (cut, 0), (cut, 0.01), (cut, 0.99)])],
)
def test_a_damaged_newest_is_passed_over(stopped, run_again, whole_digest, damage, place):
    newest = stopped / "checkpoints" / "step-00000006.safetensors"
    damage(newest, place)
    result = run_again(stopped)
    assert result.returncode == 0, result.output
    assert "warning" in result.stdout
    assert "resuming from" in result.stdout
    assert "step-00000004.safetensors, after step 4 of 8" in result.stdout
    assert newest.with_name(f"{newest.name}.corrupt").exists()
    assert digest(stopped) == whole_digest(1)


@full
@pytest.mark.parametrize("world", [2, 3, 4])
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


@pytest.mark.parametrize("world", [3, *(pytest.param(world, marks=full) for world in (1, 2, 4))])
def test_what_is_refused_is_refused_once_in_every_world(faulty, run_again, tmp_path, world):
    """A changed recipe, then checkpoints of which none is valid; rank 0 notices the damage, and one rank prints."""
    run = tmp_path / "run"
    more = ["--set", "batch={global_size: 24, micro_size: 2}", "--set", "length=1st", "--set", "schedule.warmup=0ep"]
    assert faulty(run, world=1, more=more).returncode == 0
    before = (run / "metrics.jsonl").read_bytes()
    for changed, code, words in [
        (["--set", "optimizer.lr=0.5"], 2, "optimizer.lr: 0.002 -> 0.5"),
        ([], 4, "none of the"),
    ]:
        if not changed:
            for path in (run / "checkpoints").iterdir():
                flip(path, 0.9)
        result = run_again(run, *more, *changed, world=world)
        assert result.returncode == code if world == 1 else result.returncode != 0
        one_error(result)
        assert words in result.stderr
        assert status(run)["state"] == "failed"
        assert not status(run)["reason"].startswith("rank")  # All ranks see the problem, so the reason names no rank.
        assert words in (run / "log.txt").read_text()
    assert (run / "metrics.jsonl").read_bytes() == before


@full
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
