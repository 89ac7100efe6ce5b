"""Traces of single training steps by the profiler of torch, one file for each rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from seresnext.metrics.speed import SpeedMeter

UNTRACED_STEPS = 5  # of a start before the first traced one: torch compiles and tunes


@dataclass(eq=False)
class StepProfiler:
    """A context manager of the training loop that traces `steps` (numbers from 0) and the step before as a warm-up.

    The loop starts UNTRACED_STEPS before the first of the steps. A trace is a Chrome trace in the folder of the `run`,
    for ui.perfetto.dev and for TensorBoard's profile plugin. An error of the disk is a warning, and training continues.
    Without steps nothing happens.
    """

    steps: range = range(0)
    run: Path = Path()
    rank: int = 0
    report: Callable[[str], None] = print
    _profiler: profile | None = None

    def covers(self, step: int) -> bool:
        """Return whether a step is traced or the warm-up. Such steps are slower, and do not count as speed."""
        return bool(self.steps) and self.steps.start - 1 <= step < self.steps.stop

    @contextmanager
    def tracing(self, step: int, speed: SpeedMeter) -> Iterator[None]:
        """Trace the block, which takes a step, if the step is one of the profiled ones. Write the trace at the end."""
        if self._profiler is None:
            yield
            return
        with speed.paused() if self.covers(step) else nullcontext(), record_function(f"step {step + 1}"):
            yield
        self._profiler.step()

    def __enter__(self) -> StepProfiler:
        if self.steps:
            plan = schedule(wait=UNTRACED_STEPS - 1, warmup=1, active=len(self.steps), repeat=1)
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Kineto prints two lines, and an error without a GPU.
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self._profiler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._profiler is not None:
            self._profiler.stop()  # Writes a trace that the end of the run has cut short.
            if self._profiler.step_num < UNTRACED_STEPS:
                self.report("warning: --profile traced nothing, because the run ended before the first of the steps")

    def _write(self, trace: profile) -> None:
        path = self.run / "profile" / f"steps-{self.steps.start + 1}-{self.steps.stop}-rank-{self.rank}.pt.trace.json"
        try:
            path.parent.mkdir(exist_ok=True)
            trace.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            self.report(f"warning: the trace {path} cannot be written ({error}); training continues without the trace")
        else:
            self.report(f"trace of steps {self.steps.start + 1} to {self.steps.stop}: {path}")
