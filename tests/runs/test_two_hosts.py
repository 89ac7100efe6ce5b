"""Two hosts, each with a torchrun of its own: the losses of one host, a cable that is pulled, hosts that are lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import Any

import launcher
import pytest
import yaml
from benchmark.two_hosts import Host, two_hosts
from conftest import ROOT, Command, in_ci
from faults import Fault, Faults
from run_folders import digest, losses, status

from seresnext.errors import UsageError

pytestmark = [pytest.mark.runs, pytest.mark.full]

# The timeouts of torchrun are long, since machines start slowly. Tests need less.
MEETING = ("--rdzv-backend=c10d", "--rdzv-id=test", "--rdzv-endpoint=host-a:29400", "--max-restarts=3")
PATIENCE = "--rdzv-conf=last_call_timeout=2,join_timeout=60"
FIXED, ELASTIC = ("--nnodes=2", *MEETING, PATIENCE), ("--nnodes=1:2", *MEETING, PATIENCE)
JOB = ROOT / "scripts" / "cluster" / "train_job.yaml"
READ_TIMEOUT, COLLECTIVE_TIMEOUT = 10, 5
LONG = ("runtime.precision=fp64", "length=20st", "checkpoint.every=5st")
LONG += (f"runtime.collective_timeout={COLLECTIVE_TIMEOUT}",)
CUT = tuple(Fault("step:12", "hold", rank) for rank in range(2))  # Both processes wait until the cable is pulled.


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts. The test is skipped where hosts cannot be made, but fails in CI."""
    with ExitStack() as stack:
        try:
            pair = stack.enter_context(two_hosts())
        except UsageError as error:
            if in_ci():
                raise
            pytest.skip(str(error))
        yield pair


@pytest.fixture
def start(start_command: Any, narrow_arguments: Any, hosts: tuple[Host, Host], tmp_path: Path) -> Callable[..., Any]:
    """`start(*faults, launch=FIXED, settings=[], nproc=1) -> [Command, Command], Faults`: a run on both hosts."""

    def start(
        *faults: Fault, launch: Sequence[str] = FIXED, settings: Sequence[str] = (), nproc: int = 1
    ) -> tuple[list[Command], Faults]:
        injected = Faults(tmp_path / "faults", faults)
        more = [word for setting in settings for word in ("--set", setting)]
        words = [*launch, f"--nproc_per_node={nproc}", *narrow_arguments(tmp_path / "run", *more)]
        torchrun = [sys.executable, "-m", launcher.OWN_TORCHRUN, *words]
        return [start_command(host.command(torchrun), env=injected.environment) for host in hosts], injected

    return start


@pytest.fixture
def alone(narrow_arguments: Any, run_command: Any, tmp_path: Path) -> Callable[..., list[float]]:
    """`alone(*settings) -> losses` of the undisturbed run in one process."""

    def run(*settings: str) -> list[float]:
        more = [word for setting in settings for word in ("--set", setting)]
        assert run_command([launcher.PYTHON, *narrow_arguments(tmp_path / "alone", *more)]).returncode == 0
        return losses(tmp_path / "alone")

    return run


def lose(host: Host, command: Command) -> None:
    """Lose a host: the other host receives nothing more, not even the end of a connection."""
    host.cut()
    command.process.send_signal(signal.SIGKILL)
    command.process.wait()


def finished(run: Path, commands: Sequence[Command], world_size: int) -> None:
    """Check that the commands end with 0, and that the run has finished with so many processes."""
    for command in commands:
        result = command.finish()
        assert result.returncode == 0, result.output
    assert (status(run)["state"], status(run)["world_size"]) == ("finished", world_size)


# ------------------------------------------------------------------------------------------------ runs


def test_losses_are_those_of_one_host(start, hosts, whole_digest, tmp_path):
    before = [host.sent() for host in hosts]
    commands, _ = start(nproc=2, settings=["batch.micro_size=2"])
    finished(tmp_path / "run", commands, 4)
    assert digest(tmp_path / "run") == whole_digest(4, "--set", "batch.micro_size=2")
    # Control: each host has sent the gradient of each step, 412,351 float32, over the cable.
    assert min(host.sent() - count for host, count in zip(hosts, before, strict=True)) > 8 * 4 * 412_351


def test_a_killed_process_is_started_again(start, whole_digest, tmp_path):
    """One torchrun counts a failure, and the other a machine that joins: their numbers of restarts differ."""
    commands, _ = start(Fault("reduce:5", "signal:SIGKILL", rank=1))
    finished(tmp_path / "run", commands, 2)
    assert "resuming from" in commands[0].output
    assert digest(tmp_path / "run") == whole_digest(2)


def test_a_short_cut_only_takes_time(start, hosts, alone, tmp_path):
    commands, faults = start(*CUT, settings=LONG)
    commands[0].wait_for(lambda: faults.happened(0) and faults.happened(1))
    hosts[1].cut()
    faults.release()
    time.sleep(COLLECTIVE_TIMEOUT / 2)
    hosts[1].join()
    finished(tmp_path / "run", commands, 2)
    assert "resuming from" not in commands[0].output
    assert losses(tmp_path / "run") == pytest.approx(alone(*LONG), rel=1e-7)


def test_a_host_that_was_cut_off_joins_again(start, hosts, alone, tmp_path):
    """The other host continues alone, as `--nnodes=1:2` permits."""
    run = tmp_path / "run"
    commands, faults = start(*CUT, Fault("step:14", "hold-until-asked"), launch=ELASTIC, settings=LONG)
    commands[0].wait_for(lambda: faults.happened(0) and faults.happened(1))
    hosts[1].cut()
    faults.release()
    commands[0].wait_for(lambda: faults.happened(2))
    assert (status(run)["state"], status(run)["world_size"]) == ("running", 1)
    commands[1].wait_for(lambda: "error" in commands[1].output)
    assert status(run)["state"] == "running"  # The error of a host that was cut off is not the run's.
    hosts[1].join()
    finished(run, commands, 2)
    assert commands[0].output.count("resuming from") == 2
    assert losses(run) == pytest.approx(alone(*LONG), rel=1e-7)


def test_a_host_that_is_lost_for_good_leaves_the_run_to_the_other(start, hosts, alone, tmp_path):
    commands, faults = start(*CUT, launch=ELASTIC, settings=LONG)
    commands[0].wait_for(lambda: faults.happened(0) and faults.happened(1))
    lose(hosts[1], commands[1])
    faults.release()
    finished(tmp_path / "run", commands[:1], 1)
    assert "step-00000012.safetensors, after step 12 of 20" in commands[0].output  # The last save.
    assert losses(tmp_path / "run") == pytest.approx(alone(*LONG), rel=1e-7)


def test_the_loss_of_the_host_of_the_rendezvous_ends_the_run(start, hosts, tmp_path):
    launch = [*ELASTIC[:-1], f"{PATIENCE},read_timeout={READ_TIMEOUT}"]
    commands, faults = start(*CUT, launch=launch, settings=LONG)
    commands[0].wait_for(lambda: faults.happened(0) and faults.happened(1))
    lose(hosts[0], commands[0])
    faults.release()
    began = time.monotonic()
    result = commands[1].finish()
    assert time.monotonic() - began < COLLECTIVE_TIMEOUT + READ_TIMEOUT + 10
    assert result.returncode == 1
    of_process, of_torchrun = (line for line in result.output.splitlines() if line.startswith("error"))
    assert of_process.startswith("error (rank 1): the process that connects the ranks (torchrun or rank 0) no longer ")
    assert of_process.endswith("step-00000012.safetensors")
    assert of_torchrun.startswith("error: the machines of this run cannot meet at host-a:29400 (")
    assert "Traceback" not in result.output
    assert status(tmp_path / "run")["state"] == "failed"


# ------------------------------------------------------------------------------------------------ pods of Kubernetes


@pytest.fixture
def start_pod(start_command: Any, narrow_arguments: Any, hosts: tuple[Host, Host], tmp_path: Path) -> Any:
    """`start_pod(number, faults) -> Command`: the command of train_job.yaml, with the variables of the runtime."""
    job = next(yaml.safe_load_all(JOB.read_text().partition("---")[2]))
    _, script = job["spec"]["trainer"]["command"]
    narrow, *arguments = narrow_arguments(tmp_path / "run")
    place = arguments.index("--output")
    (tmp_path / "programs").mkdir()
    python = tmp_path / "programs" / "python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "${{@/#train.py/{narrow}}}"\n')
    python.chmod(0o755)
    runtime = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "host-a", "PET_MASTER_PORT": "29500"}
    runtime |= {"OUTPUT": str(tmp_path / "run"), "PATH": f"{python.parent}:{os.environ['PATH']}"}

    def start(number: int, faults: Faults) -> Command:
        words = ["bash", ROOT / Path(script).relative_to("/app"), *arguments[:place], *arguments[place + 2 :]]
        env = {**runtime, "PET_NODE_RANK": str(number), **faults.environment}
        return start_command(hosts[number].command(words), env=env)

    return start


def test_pods_that_are_drained_or_killed_start_again(start_pod, whole_digest, tmp_path):
    """Kubernetes starts a pod again that does not end with 0."""
    run = tmp_path / "run"
    faults = Faults(tmp_path / "drained", [Fault("step:3", "hold-until-asked", rank=1)])
    pods = [start_pod(number, faults) for number in range(2)]
    pods[1].wait_for(faults.happened)
    (first,) = Path(f"/proc/{pods[1].process.pid}/task/{pods[1].process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    results = [pod.finish() for pod in pods]
    assert status(run)["state"] == "preempted"
    assert [result.returncode for result in results] == [1, 128 + signal.SIGTERM], [each.output for each in results]
    assert "the run is preempted" in results[0].stdout

    faults = Faults(tmp_path / "killed", [Fault("step:6", "hold", rank) for rank in range(2)])
    pods = [start_pod(number, faults) for number in range(2)]
    pods[0].wait_for(lambda: faults.happened(0) and faults.happened(1))
    pods[1].process.send_signal(signal.SIGKILL)
    pods[1].process.wait()
    faults.release()
    pods[1] = start_pod(1, faults)
    finished(run, pods, 2)
    assert "the run is finished" in pods[1].output
    assert digest(run) == whole_digest(2)


# ------------------------------------------------------------------------------------------------ the hosts themselves


def test_hosts_and_processes_end_with_the_program(hosts):
    """Ctrl-C removes the hosts. A program that is killed leaves the hosts to the next program, which removes them."""
    code = "from benchmark.two_hosts import *; import subprocess, sys, time\n"
    code += "with two_hosts() as hosts:\n"
    code += " subprocess.Popen(hosts[0].command(['sleep', '600'])); print('made', flush=True); time.sleep(600)"
    for number in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "scripts", stdout=PIPE) as program:
            program.stdout.readline()
            assert len(owned(program.pid)) == 2
            program.send_signal(number)
        assert len(owned(program.pid)) == (0 if number == signal.SIGINT else 2)
    with two_hosts():
        assert owned(program.pid) == []
        assert len(owned(os.getpid())) == 4  # Control: the hosts of a running program stay.


def owned(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"-{pid}-" in line]
