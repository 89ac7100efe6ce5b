"""A rank is killed, freezes or fails: the others name the rank and end, and the run resumes."""

import signal
import socket
import time
from functools import partial
from typing import Any

import pytest
from faults import SIZES, Fault, Faults, one_error
from run_folders import digest, events, last_tensors, losses, status

from seresnext.checkpoint import store

pytestmark = pytest.mark.runs


def named(result, run, rank):
    """Check that the error of the other ranks and the status name the lost rank."""
    error = one_error(result)
    assert f"rank {rank} no longer answers, last seen in" in error
    assert status(run)["state"] == "failed"
    assert f"rank {rank} no longer answers" in status(run)["reason"]
    saved = list(store.steps(run / "checkpoints").values())
    for message in (error, status(run)["reason"]):
        assert (str(saved[-1]) if saved else "No checkpoint") in message


REAL = "memory:20000000"  # A limit of so many bytes, and not only an error that is raised.
KILL, FREEZE = "signal:SIGKILL", "signal:SIGSTOP"
EVERY_DAY = (2, [("reduce:5", KILL, 1)])
FULL = [
    (1, [("reduce:5", KILL, 0), ("step:5", REAL, 0)]),
    (2, [("step:0", KILL, 0), ("validate:4", KILL, 1), ("step:5", FREEZE, 0), ("step:5", "memory", 1)]),
    (2, [("end", KILL, 0)]),
    (3, [("step:0", KILL, 2), ("validate:4", KILL, 0), ("step:5", FREEZE, 1), ("step:5", REAL, 2)]),
    (3, [("reduce:5", KILL, 1)]),
    (4, [("step:0", KILL, 3), ("reduce:5", KILL, 0), ("step:5", FREEZE, 3), ("step:5", REAL, 0)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("world", "losses"), [EVERY_DAY, *(pytest.param(*case, marks=pytest.mark.full) for case in FULL)]
)
def test_a_lost_rank_is_named(faulty, assert_resumes, tmp_path, world, losses):
    """Killed, frozen or out of memory: each time the others end, and the run, started again, comes to the next."""
    run = tmp_path / "run"
    for point, what, rank in losses:
        options: dict[str, Any] = {"more": SIZES[world]}
        if what == FREEZE:  # The frozen rank cannot end; torchrun would wait 30 s before the kill.
            options["more"] = (*SIZES[world], "--set", "runtime.collective_timeout=5")
            options["options"] = ["--shutdown-timeout=3"]
        if (world, point) == (2, "validate:4"):
            options["launch"] = ["--max-restarts=0"]  # Under torchrun, once.
        result = faulty(run, Fault(point, what, rank=rank), world=world, timeout=80, **options)
        assert result.returncode != 0
        if what.startswith("memory"):
            error, ended = one_error(result), status(run)
            assert "out of memory" in error
            assert "batch.micro_size" in error
            assert ended["state"] == "failed"
            # A process alone has nobody else to name.
            assert ended["reason"].startswith(f"rank {rank}: " if world > 1 else "out of memory")
            assert "out of memory" in ended["reason"]
        elif world > 1:
            named(result, run, rank)
        else:  # Nobody is left who could write a status.
            assert result.returncode == -signal.SIGKILL
            assert status(run)["state"] == "running"
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
def test_a_download_of_weights_is_waited_for(faulty, tmp_path):
    """The wait exceeds the limit of collectives, 13 seconds."""
    run = tmp_path / "run"
    more = ["--set", "runtime.collective_timeout=3", "--set", "model.weights=/no/such/file"]
    result = faulty(run, Fault("weights", "sleep:16"), more=more)
    assert "/no/such/file" in one_error(result)
    assert result.seconds > 16


@pytest.mark.full
def test_ranks_in_a_deadlock_report_their_activities(faulty, assert_resumes, tmp_path):
    """The rank is alive but reaches no collective: a deadlock, which must end."""
    run = tmp_path / "run"
    more = ["--set", "runtime.collective_timeout=3"]
    for rank in (0, 1):
        result = faulty(run, Fault("validate:4", "hold", rank=rank), more=more, timeout=60)
        error = one_error(result)
        places = "rank 0 in the validation after step 4, rank 1 in the validation after step 4"
        assert f"waits for another: {places}" in error
        assert status(run)["state"] == "failed"
        assert places in status(run)["reason"]
        assert "forcefully exiting" not in result.stderr  # The rank ended by itself, before the kill after 30 s.
    assert_resumes(run)


@pytest.mark.full
@pytest.mark.parametrize("points", [("import", "step:3"), ("open", "step:0")])
def test_ranks_end_with_torchrun(faulty, assert_resumes, tmp_path, points):
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
        faults = [Fault("step:5", "hold", rank=1 - rank), Fault("step:5", KILL, rank=rank)]
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
    faults = [Fault("reduce:5", KILL, rank=world - 1), Fault("validate:8", KILL, rank=0)]
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


@pytest.mark.full
def test_a_run_resumes_on_the_machines_there_are(start_torchrun, narrow_arguments, run_again, tmp_path):
    """One machine begins, a second joins and is lost: the losses are equal to an undisturbed run."""
    run = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    launch = ["--nnodes=1:2", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=elastic"]
    launch += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-conf=last_call_timeout=3,join_timeout=60"]
    settings = ("runtime.precision=fp64", "length=20st", "checkpoint.every=5st")
    more = ["--resume", "never", *(word for setting in settings for word in ("--set", setting))]
    alone, together = Fault("step:3", "hold-until-asked"), [Fault("step:12", "hold", rank=rank) for rank in range(2)]
    faults = Faults(tmp_path / "faults", [alone, *together])
    # Without the first variable, torch 2.14 does not give the address to a machine that joins later.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **faults.environment}
    start_node = partial(start_torchrun, 1, narrow_arguments(run, *more), launch=launch, env=env)
    first = start_node()
    first.wait_for(faults.happened)
    second = start_node()
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
    assert last_tensors(run).keys() == last_tensors(whole).keys()


@pytest.mark.full
def test_ranks_that_start_one_after_the_other_are_one_run(faulty, whole_digest, tmp_path):
    run = tmp_path / "run"
    started = time.monotonic()
    result = faulty(run, Fault("import", "sleep:1.5", rank=1))
    assert result.returncode == 0, result.output
    assert time.monotonic() - started > 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert digest(run) == whole_digest(2)
