"""Asked to stop at any moment, by any signal, through any process: all ranks save together and exit with 0."""

import signal
import sys
import time
from pathlib import Path

import pytest
from faults import SIZES, Fault, Faults
from launcher import OWN_TORCHRUN
from run_folders import digest, events, status

from seresnext.checkpoint import store
from seresnext.process.signals import STOP_SIGNALS

pytestmark = pytest.mark.runs
full = pytest.mark.full

# torchrun forwards only the listed signals. By default SIGUSR1 ends torchrun alone.
FORWARD = ("--signals-to-handle", ",".join(number.name for number in STOP_SIGNALS))
# The point of a signal, and the possible numbers of completed steps when the run stops.
POINTS = {
    "import": {0},
    "open": {0},
    "warm-up": {0},
    "step:0": {1, 2},  # The report of a step is read after the next one was queued.
    "save:2": {2, 3, 4, 5},
    "saved:2": {2, 3, 4, 5},
    "step:3": {4},
    "validate:4": {4},
    "reduce:5": {6, 7},
    "step:5": {6, 7},
    "validate:8": {8},
}
SAVES = ("--set", "checkpoint.every=2st")
WORLDS = (1, 2, 3, 4)
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
# These signals share code: each meets a third of the points, and all three together meet every point.
OTHERS = ("SIGHUP", "SIGUSR2", "SIGXCPU")
# The process that gets the signal: torchrun, the first rank, or the last rank with the loader workers, which must live
# until the save.
TARGETS = ("torchrun", "first", "last")
# A run is stopped at one point after the other, and resumes each time.
STOPS = (
    ("import", "step:0", "validate:4", "reduce:5"),
    ("open", "save:2", "validate:8"),
    ("warm-up", "saved:2", "step:5"),
)


def draw(row, column):
    """World, signal, and the points and targets of a run: each signal meets each point, and each target each world."""
    world, name = WORLDS[(row + column) % 4], (*NAMES, *OTHERS)[column]
    if (world, name, row) == (1, "SIGINT", 0):
        world = 2  # Ctrl-C ends a single process that has begun nothing.
    stops = []
    for number, point in enumerate(STOPS[row]):
        target = TARGETS[(row + column + number) % 3]
        if world == 1 and target == "torchrun":
            target = "last"
        if point.startswith("save") and target == "last":
            target = "first"  # Rank 0 alone writes.
        stops.append((point, target))
    return world, name, stops


EVERY_DAY = [(2, "SIGUSR1", [("step:3", "last")])]
SOME = [
    (1, "SIGTERM", [("import", "first")]),
    (3, "SIGINT", [("validate:4", "last")]),
    (3, "SIGUSR1", [("step:3", "torchrun")]),
    (2, "SIGINT", [("import", "last")]),
]
FULL = [draw(row, column) for row in range(len(STOPS)) for column in range(len(NAMES))]
MORE = [draw(row, len(NAMES) + row) for row in range(len(STOPS))]


def test_every_signal_meets_every_point_and_every_target_every_world():
    met = {(name, point) for _, name, stops in FULL for point, _ in stops}
    assert met == {(name, point) for name in NAMES for point in POINTS if point != "step:3"}
    met = {(world, target) for world, _, stops in FULL for _, target in stops}
    assert met == {(world, target) for world in WORLDS for target in TARGETS} - {(1, "torchrun")}
    assert {name for _, name, _ in [*FULL, *MORE]} == {number.name for number in STOP_SIGNALS}
    assert {point for _, _, stops in MORE for point, _ in stops} == POINTS.keys() - {"step:3"}


@pytest.fixture
def stop(start_faulty, tmp_path):
    """`stop(*faults, world=2, timeout=90, ...) -> Result` of a run in which the first fault happens.

    All ranks exit with 0, and no rank prints an error. torchrun always ends with 1 after a signal.
    """

    def run(*faults, world=2, timeout=90, **options):
        command, injected = start_faulty(tmp_path / "run", *faults, world=world, **options)
        result = command.finish(timeout=timeout)
        assert injected.happened(), result.output
        assert injected.exit_codes() == dict.fromkeys(range(world), 0), result.output
        assert (result.returncode == 0) is not any(fault.do.startswith("torchrun") for fault in faults)
        assert [line for line in result.stderr.splitlines() if line.startswith("error")] == []
        return result

    return run


@pytest.mark.parametrize(
    ("world", "name", "stops"), [*EVERY_DAY, *(pytest.param(*case, marks=full) for case in [*SOME, *FULL, *MORE])]
)
def test_asked_to_stop(stop, assert_resumes, tmp_path, world, name, stops):
    """At each point the run starts or resumes, and is asked to stop. Rank 0 alone saves."""
    run = tmp_path / "run"
    for point, target in stops:
        is_saving = point.startswith("save")
        fault = {"torchrun": "torchrun", "first": "signal", "last": "group"}[target]
        faults = [Fault(point, f"{fault}:{name}", rank=0 if target == "first" or is_saving else world - 1)]
        if is_saving:  # The write is in the background, and training must not end before the signal.
            faults.append(Fault("step:3", "sleep:3", rank=world - 1))
        launch = FORWARD if target == "torchrun" else ()
        stop(*faults, world=world, more=[*SIZES[world], *SAVES], launch=launch)
        assert status(run)["state"] == "preempted"
        assert name in status(run)["reason"]
        assert status(run)["step"] in POINTS[point], point
        assert max(store.steps(run / "checkpoints")) == status(run)["step"]
        if point.startswith("validate"):
            assert [event["step"] for event in events(run, "validate")].count(status(run)["step"]) == 0
    assert_resumes(run, world, *SIZES[world])


@pytest.mark.parametrize(
    ("world", "first", "second"),
    [
        (1, "signal:SIGTERM", "signal:SIGTERM"),
        *(
            pytest.param(*case, marks=full)
            for case in [
                (3, "signal:SIGINT", "signal:SIGTERM"),
                (2, "torchrun:SIGTERM", "torchrun:SIGTERM"),
                (4, "torchrun:SIGINT", "torchrun:SIGTERM"),
            ]
        ),
    ],
)
def test_asked_twice_it_saves_once(stop, assert_resumes, tmp_path, world, first, second):
    """Two signals, as from schedulers. A second Ctrl-C alone ends the run without a save."""
    run = tmp_path / "run"
    faults = [Fault("step:3", what, rank=world - 1) for what in (first, "sleep:0.5", second)]
    stop(*faults, world=world, more=SIZES[world], launch=FORWARD if first.startswith("torchrun") else ())
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 4)
    assert sorted(store.steps(run / "checkpoints")) == [4]
    assert_resumes(run, world, *SIZES[world])


@full
@pytest.mark.parametrize(
    ("world", "point", "what"),
    [
        (2, "end", "signal:SIGTERM"),
        (3, "exit", "signal:SIGTERM"),
        (1, "end", "signal:SIGINT"),
        (4, "end", "torchrun:SIGINT"),
        (2, "exit", "torchrun:SIGTERM"),
    ],
)
def test_after_the_last_step_it_is_finished(stop, whole_digest, tmp_path, world, point, what):
    others = [Fault("exit", "signal:SIGUSR1", rank=world - 1)] if world > 1 else []
    stop(Fault(point, what), *others, world=world, more=SIZES[world])
    assert status(tmp_path / "run")["state"] == "finished"
    assert digest(tmp_path / "run") == whole_digest(world, *SIZES[world])


@full
def test_torchrun_passes_on_that_its_terminal_was_closed(stop, tmp_path):
    """This holds without --signals-to-handle. The workers have other sessions and no terminal."""
    stop(Fault("step:3", "torchrun:SIGHUP", rank=1))
    assert status(tmp_path / "run")["state"] == "preempted"
    assert "SIGHUP" in status(tmp_path / "run")["reason"]


@full
def test_a_signal_that_torchrun_does_not_handle_still_saves(stop, assert_resumes, tmp_path):
    """By default SIGUSR1 ends torchrun. The ranks notice, save and end."""
    result = stop(Fault("step:3", "torchrun:SIGUSR1", rank=1), timeout=60)
    assert result.returncode == -signal.SIGUSR1
    assert status(tmp_path / "run")["state"] == "preempted"
    assert_resumes(tmp_path / "run")


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:  # The process has ended.
        return ""


# Like a terminal emulator: start a session, and close the window later.
TERMINAL = """
import os, pty, select, sys
from pathlib import Path

pid, window = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
while not Path(sys.argv[1]).exists():
    if select.select([window], [], [], 0.05)[0]:
        try:
            os.read(window, 4096)
        except OSError:  # The program has not opened the terminal yet.
            pass
os.close(window)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@full
@pytest.mark.parametrize("shell", [(), ("nohup",)], ids=["plain", "nohup"])
def test_a_terminal_that_is_closed(start_command, narrow_arguments, assert_resumes, tmp_path, shell):
    """A run saves and is preempted. Under nohup, the run trains to the end."""
    run, faults = tmp_path / "run", Faults(tmp_path / "faults", [Fault("step:3", "sleep:1.5")])
    program = [sys.executable, *narrow_arguments(run)]
    closed = [sys.executable, "-c", TERMINAL, tmp_path / "faults" / "happened-0", *shell, *program]
    result = start_command(closed, env=faults.environment, cwd=tmp_path).finish(timeout=90)
    assert result.returncode == 0, (run / "log.txt").read_text()
    assert faults.exit_codes() == {0: 0}
    if shell:
        assert status(run)["state"] == "finished"
    else:
        assert (status(run)["state"], status(run)["step"]) == ("preempted", 4)
        assert "SIGHUP" in status(run)["reason"]
    assert_resumes(run, 1)


def test_the_limit_of_cpu_time_is_reached(stop, tmp_path):
    """The kernel sends the signal, not the test."""
    run = tmp_path / "run"
    stop(Fault("step:3", "cpu"), world=1)
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 4)
    assert "SIGXCPU" in status(run)["reason"]
    assert sorted(store.steps(run / "checkpoints")) == [4]


@pytest.mark.full
def test_ctrl_c_to_our_torchrun_ends_with_saved(start_torchrun, narrow_arguments, tmp_path):
    """PyTorch's torchrun ends with a traceback here."""
    run = tmp_path / "run"
    faults = Faults(tmp_path / "faults", [Fault("step:3", "hold-until-asked", rank) for rank in range(2)])
    command = start_torchrun(2, narrow_arguments(run), torchrun=OWN_TORCHRUN, env=faults.environment)
    command.wait_for(lambda: faults.happened(0) and faults.happened(1))
    command.process.send_signal(signal.SIGINT)
    result = command.finish(timeout=60)
    assert result.returncode == 130, result.output
    assert faults.exit_codes() == {0: 0, 1: 0}
    assert status(run)["state"] == "preempted"
    assert "Traceback" not in result.output
    assert "and saved" in result.stdout.splitlines()[-1]


@full
def test_while_it_compiles(start_faulty, tmp_path):
    """The compiler is a child in the process group that torchrun signals."""
    run = tmp_path / "run"
    compiled = ["--set", "runtime.compile=true", "--set", "runtime.precision=fp32"]
    patient = ["--shutdown-timeout=200"]  # Nothing can interrupt the compiler.
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}  # Empty, so that there is something to do.
    command, faults = start_faulty(run, Fault("warm-up", "sleep:0", rank=1), more=compiled, launch=patient, env=env)
    command.wait_for(lambda: faults.happened())
    command.wait_for(lambda: any("cc1plus" in name_of(pid) for pid in command.alive()), timeout=120)
    command.process.send_signal(signal.SIGTERM)
    result = command.finish(timeout=240)
    assert faults.exit_codes() == {0: 0, 1: 0}, result.output
    assert status(run)["state"] == "preempted"
    assert set(store.steps(run / "checkpoints")) == {0}
    assert store.newest_valid(run / "checkpoints").warnings == []


@full
def test_a_second_ctrl_c_ends_at_once(start_faulty, assert_resumes, tmp_path):
    """A rank is held within a step; torchrun gets Ctrl-C twice, as from a terminal."""
    run = tmp_path / "run"
    command, faults = start_faulty(run, Fault("step:5", "hold", rank=1), launch=FORWARD)
    command.wait_for(faults.happened)
    command.process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert command.process.poll() is None  # The control: one asks only.
    asked = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    result = command.finish()
    assert time.monotonic() - asked < 25  # The rank is held for 120.
    assert result.returncode != 0
    assert_resumes(run)
