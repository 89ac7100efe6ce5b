"""Asked to stop at any moment, by any signal, through any process: all ranks save together and exit with 0."""

from __future__ import annotations

import signal
import time
from itertools import cycle
from pathlib import Path

import pytest
from faults import Fault
from run_folders import events, status

from seresnext.checkpoint import store

pytestmark = pytest.mark.runs

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
# torchrun passes on these and no others, so that SIGUSR1 would end it alone.
FORWARD = ("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")
# Where a signal comes, and how many steps are complete when the run stops.
POINTS = {
    "import": {0},
    "open": {0},
    "warm-up": {0},
    "step:0": {1, 2},  # The report of a step is read after the next one was queued.
    "reduce:2": {3, 4},
    "step:3": {4},
    "validate:4": {4},
    "save:4": {4, 5, 6},
    "saved:4": {4, 5, 6},
    "validate:8": {8},
}
_names = cycle(NAMES)
CASES = [(target, next(_names), point) for point in POINTS for target in ("torchrun", "signal")]
CASES += [(target, name, "step:3") for target in ("torchrun", "signal") for name in NAMES]
EVERY_DAY = [("torchrun", "SIGUSR1", "step:3"), ("signal", "SIGINT", "import"), ("signal", "SIGTERM", "validate:4")]


def with_marks(cases, every_day):
    return [case if case in every_day else pytest.param(*case, marks=pytest.mark.full) for case in dict.fromkeys(cases)]


@pytest.mark.parametrize(("target", "name", "point"), with_marks([*EVERY_DAY, *CASES], EVERY_DAY))
def test_asked_to_stop(start_faulty, assert_goes_on, tmp_path, target, name, point):
    """`save` happens on rank 0, which alone writes; elsewhere the signal comes to or through rank 1."""
    run = tmp_path / "run"
    rank = 0 if point.startswith("save") else 1
    # A file is written beside the training, which must not be over by then.
    waiting = [Fault("step:5", "sleep:5", rank=1)] if point == "saved:4" else []
    command, faults = start_faulty(run, Fault(point, f"{target}:{name}", rank=rank), *waiting, launch=FORWARD)
    result = command.finish(timeout=60)
    assert faults.happened(), result.output
    assert faults.exit_codes() == {0: 0, 1: 0}, result.output
    assert (result.returncode == 0) is (target == "signal")  # torchrun, when signalled, reports 1 whatever happened.
    assert [line for line in result.stderr.splitlines() if line.startswith("error")] == []
    assert status(run)["state"] == "preempted"
    assert name in status(run)["reason"]
    assert status(run)["step"] in POINTS[point]
    assert max(store.steps(run / "checkpoints")) == status(run)["step"]
    if point.startswith("validate"):
        assert [event["step"] for event in events(run, "validate")].count(status(run)["step"]) == 0
    assert_goes_on(run)


@pytest.mark.full
@pytest.mark.parametrize("point", ["end", "exit"])
def test_after_the_last_step_it_is_finished(start_faulty, assert_goes_on, tmp_path, point):
    run = tmp_path / "run"
    faults = [Fault(point, "signal:SIGTERM", rank=0), Fault("exit", "signal:SIGUSR1", rank=1)]
    command, injected = start_faulty(run, *faults)
    result = command.finish(timeout=60)
    assert result.returncode == 0, result.output
    assert injected.exit_codes() == {0: 0, 1: 0}
    assert status(run)["state"] == "finished"
    assert_goes_on(run)


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 3, 4])
def test_asked_to_stop_at_every_size(start_faulty, assert_goes_on, tmp_path, world):
    """The signal comes to the last rank and to its loader workers, which must not die of it before the save."""
    run = tmp_path / "run"
    sizes = ["--set", "batch.global_size=24", "--set", "batch.micro_size=2"]
    command, faults = start_faulty(run, Fault("step:3", "group:SIGTERM", rank=world - 1), world=world, more=sizes)
    result = command.finish(timeout=90)
    assert (result.returncode, status(run)["state"]) == (0, "preempted"), result.output
    assert set(faults.exit_codes().values()) == {0}
    assert_goes_on(run, world, *sizes)


@pytest.mark.full
def test_a_signal_that_torchrun_does_not_handle_still_saves(start_faulty, assert_goes_on, tmp_path):
    """Without --signals-to-handle SIGUSR1 ends torchrun itself. Its ranks notice, save and end."""
    run = tmp_path / "run"
    command, faults = start_faulty(run, Fault("step:3", "torchrun:SIGUSR1", rank=1))
    result = command.finish(timeout=60)
    assert result.returncode == -signal.SIGUSR1
    assert faults.exit_codes() == {0: 0, 1: 0}
    assert status(run)["state"] == "preempted"
    assert_goes_on(run)


@pytest.mark.full
def test_while_it_compiles(start_faulty, tmp_path):
    """The compiler is a child in the process group that torchrun signals."""
    run = tmp_path / "run"
    compiled = ["--set", "runtime.compile=true", "--set", "runtime.precision=fp32"]
    patient = ["--shutdown-timeout", "200"]  # Nothing can interrupt the compiler.
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}  # Empty, so that there is something to do.
    command, faults = start_faulty(run, Fault("warm-up", "sleep:0", rank=1), more=compiled, launch=patient, env=env)
    command.wait_for(lambda: faults.happened())
    command.wait_for(lambda: any("cc1plus" in name for name in names_of(command.alive())), timeout=120)
    command.process.send_signal(signal.SIGTERM)
    result = command.finish(timeout=240)
    assert faults.exit_codes() == {0: 0, 1: 0}, result.output
    assert status(run)["state"] == "preempted"
    newest = store.newest_valid(run / "checkpoints").path
    assert newest
    assert store.verify(newest)["step"] == "0"


def names_of(pids):
    for pid in pids:
        try:
            yield Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            continue


def test_a_second_ctrl_c_ends_at_once(start_faulty, assert_goes_on, tmp_path):
    """A rank that does not come to the end of its step; torchrun gets Ctrl-C twice, as from a terminal."""
    run = tmp_path / "run"
    command, faults = start_faulty(run, Fault("step:5", "hold", rank=1))
    command.wait_for(faults.happened)
    command.process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert command.process.poll() is None  # The control: one asks only.
    asked = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    result = command.finish(timeout=10, grace=5)
    assert time.monotonic() - asked < 10
    assert result.returncode != 0
    assert_goes_on(run)
