"""The steps that a profiler traces, and the file of a trace."""

from __future__ import annotations

import json

import pytest
import torch

from seresnext.metrics.speed import SpeedMeter
from seresnext.training.profile import StepProfiler, build_profiler


def traced(profiler, steps):
    """Take steps with the profiler."""
    speed = SpeedMeter()
    with profiler:
        for step in steps:
            with profiler.tracing(step, speed):
                torch.ones(10, 10) @ torch.ones(10, 10)


def steps_in(folder):
    """Return the numbers of the steps in the one trace of a folder."""
    (file,) = folder.iterdir()
    names = {str(event.get("name")) for event in json.loads(file.read_text())["traceEvents"]}
    assert "aten::matmul" in names
    return file.name, sorted(int(name.removeprefix("step ")) for name in names if name.startswith("step "))


@pytest.mark.parametrize(
    ("wanted", "start", "name", "expected"),
    [
        ((4, 5), 0, "steps-4-5-rank-3.pt.trace.json", [4, 5]),
        ((1, 2), 0, "steps-1-2-rank-3.pt.trace.json", [1, 2]),
        ((None, 2), 10, "steps-16-17-rank-3.pt.trace.json", [16, 17]),
        ((4, 12), 10, "steps-11-12-rank-3.pt.trace.json", [11, 12]),
    ],
    ids=["a range", "without a step for the warm-up", "a number", "a resume within the range"],
)
def test_the_steps_of_the_trace(tmp_path, wanted, start, name, expected):
    texts = []
    traced(build_profiler(wanted, start, tmp_path / "profile", 3, texts.append), range(start, start + 10))
    assert steps_in(tmp_path / "profile") == (name, expected)
    assert texts == [f"trace of steps {expected[0]} to {expected[-1]}: {tmp_path / 'profile' / name}"]


def test_a_run_that_ends_within_the_steps_writes_what_it_has(tmp_path):
    traced(build_profiler((3, 9), 0, tmp_path / "profile", 0, print), range(4))
    assert steps_in(tmp_path / "profile")[1] == [3, 4]


@pytest.mark.parametrize("wanted", [(2, 3), (40, 50)], ids=["before the start", "after the end"])
def test_steps_that_never_come_are_a_warning(tmp_path, wanted):
    texts = []
    traced(build_profiler(wanted, 5, tmp_path / "profile", 0, texts.append), range(5, 10))
    assert len(texts) == 1
    assert texts[0].startswith("warning: --profile trace")
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "profile").write_text("a file")
    texts = []
    traced(build_profiler((2, 3), 0, tmp_path / "profile", 0, texts.append), range(5))
    assert texts[0].startswith(f"warning: the trace {tmp_path / 'profile' / 'steps-2-3-rank-0'}")


def test_without_steps_there_is_no_profiler(tmp_path):
    profiler = StepProfiler()
    traced(profiler, range(5))
    assert not any(profiler.covers(step) for step in range(5))
    assert build_profiler(None, 0, tmp_path, 0, print).covers(5) is False


def test_traced_steps_and_the_warm_up_do_not_count_as_speed():
    profiler = build_profiler((4, 5), 0, None, 0, print)
    assert [step for step in range(10) if profiler.covers(step)] == [2, 3, 4]


def test_the_profiler_of_torch_prints_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    traced(build_profiler((2, 3), 0, tmp_path / "profile", 0, lambda text: None), range(5))
    assert capfd.readouterr() == ("", "")
