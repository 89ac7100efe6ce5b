"""A rank is killed, freezes or fails: the others name the rank and end, and the run resumes."""

from __future__ import annotations

import signal
import socket
import time

import pytest
from conftest import ROOT
from faults import SIZES, Fault, Faults
from launcher import PYTHON, TORCHRUN
from run_folders import digest, events, last_tensors, losses, status

from seresnext.checkpoint import store

pytestmark = pytest.mark.runs


def errors(result):
    """Return the error lines of our program, without those of torchrun. A traceback of ours fails the test."""
    assert f"{ROOT}/seresnext" not in result.stderr, result.output
    return [line for line in result.stderr.splitlines() if line.startswith("error")]


def named(result, run, rank):
    """Check that the error of the other ranks and the status name the lost rank."""
    (error,) = errors(result)
    assert f"rank {rank} no longer answers, last seen in" in error
    assert status(run)["state"] == "failed"
    assert f"rank {rank} no longer answers" in status(run)["reason"]
    saved = list(store.steps(run / "checkpoints").values())
    for message in (error, status(run)["reason"]):
        assert (str(saved[-1]) if saved else "No checkpoint") in message


def killed(point, rank, launch=()):
    def happen(faulty, run, world):
        fault = Fault(point, "kill", rank=rank)
        result = faulty(run, fault, world=world, more=SIZES[world], launch=launch, timeout=80)
        assert result.returncode != 0
        if world > 1:
            named(result, run, rank)
        else:  # Nobody is left who could write a status.
            assert result.returncode == -signal.SIGKILL
            assert status(run)["state"] == "running"

    return happen


def frozen(rank):
    def happen(faulty, run, world):
        more = [*SIZES[world], "--set", "runtime.collective_timeout=5"]
        options = ["--shutdown-timeout=3"]  # The frozen rank cannot end; torchrun would wait 30 s before the kill.
        result = faulty(run, Fault("step:5", "stop", rank=rank), world=world, more=more, options=options, timeout=60)
        named(result, run, rank)

    return happen


def without_memory(how, rank):
    def happen(faulty, run, world):
        result = faulty(run, Fault("step:5", how, rank=rank), world=world, more=SIZES[world], timeout=80)
        assert result.returncode != 0
        (error,) = errors(result)
        assert "out of memory" in error
        assert "batch.micro_size" in error
        assert status(run)["state"] == "failed"
        # A process alone has nobody else to name.
        assert status(run)["reason"].startswith(f"rank {rank}: " if world > 1 else "out of memory")
        assert "out of memory" in status(run)["reason"]

    return happen


UNDER_TORCHRUN = ["--max-restarts=0"]
REAL = "memory:20000000"  # A limit of so many bytes, and not only an error that is raised.
EVERY_DAY = (3, [killed("reduce:5", 1)])
FULL = [
    (1, [killed("reduce:5", 0), without_memory(REAL, 0)]),
    (
        2,
        [
            killed("step:0", 0),
            killed("validate:4", 1, UNDER_TORCHRUN),
            frozen(0),
            without_memory("memory", 1),
            killed("end", 0),
        ],
    ),
    (3, [killed("step:0", 2), killed("validate:4", 0), frozen(1), without_memory(REAL, 2)]),
    (4, [killed("step:0", 3), killed("reduce:5", 0), frozen(3), without_memory(REAL, 0)]),
]


@pytest.mark.parametrize(
    ("world", "losses"), [EVERY_DAY, *(pytest.param(*case, marks=pytest.mark.full) for case in FULL)]
)
def test_a_lost_rank_is_named(faulty, assert_resumes, tmp_path, world, losses):
    """Killed, frozen or out of memory: each time the others end, and the run, started again, comes to the next."""
    run = tmp_path / "run"
    for happen in losses:
        happen(faulty, run, world)
    assert_resumes(run, world, *SIZES[world])


@pytest.mark.full
def test_a_rank_that_is_only_slow_is_waited_for(faulty, whole_digest, tmp_path):
    """The control: the rank is alive and sends heartbeats for longer than the limit."""
    run = tmp_path / "run"
    more = ["--set", "runtime.collective_timeout=3"]
    result = faulty(run, Fault("step:5", "sleep:8", rank=1), more=more)
    assert result.returncode == 0, result.output
    assert digest(run) == whole_digest(2)


@pytest.mark.full
def test_ranks_that_wait_in_vain_say_where_they_are(faulty, assert_resumes, tmp_path):
    """The rank is alive but reaches no collective: a deadlock, which must end."""
    run = tmp_path / "run"
    more = ["--set", "runtime.collective_timeout=3"]
    for rank in (0, 1):
        result = faulty(run, Fault("validate:4", "hold", rank=rank), more=more, timeout=60)
        (error,) = errors(result)
        places = "rank 0 in the validation after step 4, rank 1 in the validation after step 4"
        assert f"waits for another: {places}" in error
        assert status(run)["state"] == "failed"
        assert places in status(run)["reason"]
        assert "forcefully exiting" not in result.stderr  # The rank ended by itself, before the kill after 30 s.
    assert_resumes(run)


@pytest.mark.full
@pytest.mark.parametrize("points", [("import", "step:3"), ("open", "step:0")])
def test_without_torchrun_ranks_do_not_go_on_alone(faulty, assert_resumes, tmp_path, points):
    """Before the ranks have met, there is nothing to save, and the store is gone."""
    run = tmp_path / "run"
    for point in points:
        result = faulty(run, Fault(point, "torchrun:SIGKILL", rank=1), timeout=40)
        assert result.returncode == -signal.SIGKILL  # `faulty` also checks that no process is left after 10 s.
        if point != "import":
            assert status(run)["state"] == "preempted"
    assert_resumes(run)


@pytest.mark.full
def test_a_killed_rank_is_named_by_one_that_waits_elsewhere(faulty, assert_resumes, tmp_path):
    """The other rank is held, as in an NCCL kernel, which does not see the loss. The rank prints an error and ends."""
    run = tmp_path / "run"
    for rank in (1, 0):
        faults = [Fault("step:5", "hold", rank=1 - rank), Fault("step:5", "kill", rank=rank)]
        result = faulty(run, *faults, timeout=60)
        # Heartbeats are a second apart, so the last heartbeat may be from before the fatal step.
        named(result, run, rank)
        assert "forcefully exiting" not in result.stderr
    assert_resumes(run)


# ------------------------------------------------------------------------------------------------ restarts


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_torchrun_starts_a_killed_run_again(faulty, whole_digest, tmp_path, world):
    """Twice, at other steps, and each time from the last good step; `--resume never` is for the first start only."""
    run = tmp_path / "run"
    faults = [Fault("reduce:5", "kill", rank=world - 1), Fault("validate:8", "kill", rank=0)]
    more = [*SIZES[world], "--resume", "never"]
    result = faulty(run, *faults, world=world, launch=["--max-restarts=3"], more=more, timeout=180)
    assert result.returncode == 0, result.output
    assert result.stdout.count("resuming from") == 2
    assert status(run)["state"] == "finished"
    assert digest(run) == whole_digest(world, *SIZES[world])
    assert not (run / "earlier-1").exists()


@pytest.mark.full
def test_torchrun_does_not_start_a_preempted_run_again(start_faulty, assert_resumes, tmp_path):
    run = tmp_path / "run"
    command, _ = start_faulty(run, Fault("step:3", "signal:SIGTERM", rank=1), launch=["--max-restarts=3"])
    result = command.finish(timeout=60)
    assert (result.returncode, status(run)["state"]) == (0, "preempted"), result.output
    assert "resuming from" not in result.stdout
    assert_resumes(run)


@pytest.fixture
def start_node(start_command, narrow_arguments, tmp_path):
    """`start_node(output, port, faults, *more)`: one of one or two machines, here the same one, with one process."""

    def start(output, port, faults, *more):
        launch = ["--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=elastic"]
        launch += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-conf=last_call_timeout=3,join_timeout=60"]
        arguments = narrow_arguments(output, *more)
        # Without this variable, torch 2.14 does not give the address to a machine that joins later.
        env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **faults.environment}
        return start_command([PYTHON, "-m", TORCHRUN, *launch, *arguments], env=env)

    return start


@pytest.mark.full
def test_a_run_goes_on_with_the_machines_there_are(start_node, run_again, tmp_path):
    """One machine begins, a second joins and is lost: the losses are equal to an undisturbed run."""
    run, port = tmp_path / "run", free_port()
    settings = ("runtime.precision=fp64", "length=20st", "checkpoint.every=5st")
    more = ["--resume", "never", *(word for setting in settings for word in ("--set", setting))]
    alone, together = Fault("step:3", "hold-until-asked"), [Fault("step:12", "hold", rank=rank) for rank in range(2)]
    faults = Faults(tmp_path / "faults", [alone, *together])
    first = start_node(run, port, faults, *more)
    first.wait_for(faults.happened)
    second = start_node(run, port, faults, *more)
    first.wait_for(lambda: faults.happened(1) and faults.happened(2), timeout=120)
    assert (status(run)["state"], status(run)["world_size"]) == ("running", 2)
    second.process.send_signal(signal.SIGKILL)
    second.process.wait()
    faults.release()
    result = first.finish(timeout=240)
    assert result.returncode == 0, result.output
    assert second.alive() == []
    assert (status(run)["state"], status(run)["world_size"]) == ("finished", 1)
    assert result.stdout.count("resuming from") == 2
    assert not (run / "earlier-1").exists()
    whole = tmp_path / "whole"
    assert run_again(whole, *more).returncode == 0
    assert losses(run) == pytest.approx(losses(whole), rel=1e-7)
    assert len(events(run, "validate")) == len(events(whole, "validate"))
    ours, theirs = last_tensors(run), last_tensors(whole)
    assert ours.keys() == theirs.keys()


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.full
def test_ranks_that_start_one_after_the_other_are_one_run(faulty, whole_digest, tmp_path):
    run = tmp_path / "run"
    started = time.monotonic()
    result = faulty(run, Fault("import", "sleep:1.5", rank=1))
    assert result.returncode == 0, result.output
    assert time.monotonic() - started > 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert digest(run) == whole_digest(2)
