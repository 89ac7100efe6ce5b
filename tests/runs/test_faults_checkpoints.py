"""Checkpoints are damaged between two starts: the newest good one is used, by all ranks, or the run is refused."""

from __future__ import annotations

import pytest
from conftest import ROOT
from faults import Fault
from run_folders import digest, status

pytestmark = pytest.mark.runs


@pytest.fixture
def stopped(start_faulty, tmp_path):
    """A run that stopped after step 6 of 8, with the checkpoints of steps 4 and 6."""
    run = tmp_path / "run"
    command, _ = start_faulty(run, Fault("step:4", "signal:SIGTERM"), world=1)
    assert command.finish().returncode == 0
    assert status(run)["step"] == 6
    return run


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def cut(path, share):
    """Make a file shorter, as a full disk or a copy that was broken off would; all its names show it."""
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
    assert "going on from" in result.stdout
    assert "step-00000004.safetensors, after step 4 of 8" in result.stdout
    assert "step-00000006.safetensors.corrupt" in names(stopped)
    assert digest(stopped) == whole_digest(1)


def test_all_damaged_is_refused_once(stopped, run_again):
    """Under torchrun: rank 0 finds it out, all ranks end, and one speaks."""
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
    assert run_again(stopped).returncode == 4  # And again, now that their names say that they are damaged.


@pytest.mark.full
def test_swapped_names(stopped, run_again, whole_digest):
    """What is inside counts: the one called step 6 is of step 4, and from there it goes on."""
    newer, older = (stopped / "checkpoints" / f"step-0000000{step}.safetensors" for step in (6, 4))
    newer.rename(newer.with_suffix(".aside"))
    older.rename(newer)
    newer.with_suffix(".aside").rename(older)
    result = run_again(stopped)
    assert result.returncode == 0, result.output
    assert "after step 4 of 8" in result.stdout
    assert digest(stopped) == whole_digest(1)
