"""The steps that a profiler traces, and the file of a trace."""

import json

import torch

from seresnext.metrics.speed import SpeedMeter
from seresnext.training.profile import StepProfiler


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


def test_the_steps_of_the_trace(tmp_path, capfd, monkeypatch):
    """The profiler of torch prints nothing. The warm-up is slow, too."""
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    texts = []
    traced(StepProfiler(range(15, 17), tmp_path, 3, texts.append), range(10, 20))
    name = "steps-16-17-rank-3.pt.trace.json"
    assert steps_in(tmp_path / "profile") == (name, [16, 17])
    assert texts == [f"trace of steps 16 to 17: {tmp_path / 'profile' / name}"]
    assert capfd.readouterr() == ("", "")
    assert [step for step in range(20) if StepProfiler(range(15, 17)).covers(step)] == [14, 15, 16]


def test_a_run_that_ends_within_the_steps_writes_what_it_has(tmp_path):
    traced(StepProfiler(range(5, 12), tmp_path), range(7))
    assert steps_in(tmp_path / "profile")[1] == [6, 7]


def test_steps_that_never_come_are_a_warning(tmp_path):
    texts = []
    traced(StepProfiler(range(10, 20), tmp_path, 0, texts.append), range(5, 9))
    assert texts == ["warning: --profile traced nothing, because the run ended before the first of the steps"]
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "profile").write_text("a file")
    texts = []
    traced(StepProfiler(range(5, 7), tmp_path, 0, texts.append), range(8))
    assert texts[0].startswith(f"warning: the trace {tmp_path / 'profile' / 'steps-6-7-rank-0'}")
