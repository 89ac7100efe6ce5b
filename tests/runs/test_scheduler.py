"""The Slurm job, with a stand-in for Slurm: the job saves on the signal and queues again until the run is finished."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from conftest import ROOT
from faults import Fault, Faults
from run_folders import digest, status

pytestmark = [pytest.mark.runs, pytest.mark.full]
JOB = ROOT / "scripts" / "slurm" / "train.sbatch"


@pytest.fixture
def start_job(start_command, narrow_arguments, tmp_path):
    """`start_job(output, *more, faults={})`: the job as Slurm starts jobs, with two imaginary GPUs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    narrow = narrow_arguments(tmp_path)[0]
    start = f'exec {sys.executable} -m torch.distributed.run "${{@/#train.py/{narrow}}}"'
    (programs / "torchrun").write_text(f"#!/bin/bash\n{start}\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "17"}

    def start(output: Path, *more: str, faults: Mapping[str, str] = MappingProxyType({})):
        words = narrow_arguments(output, *more)[1:]
        place = words.index("--output")
        return start_command(
            ["bash", JOB, *words[:place], *words[place + 2 :]], env={**env, **faults, "OUTPUT": str(output)}
        )

    return start


def test_a_job_with_a_signal_is_queued_again(start_job, whole_digest, tmp_path):
    run = tmp_path / "run"
    faults = Faults(tmp_path / "faults", [Fault("step:3", "hold-until-asked", rank) for rank in range(2)])
    first = start_job(run, faults=faults.environment)
    first.wait_for(lambda: faults.happened(0) and faults.happened(1))
    first.process.send_signal(signal.SIGUSR1)
    result = first.finish()
    assert result.returncode == 0, result.output
    assert "the run is preempted" in result.stdout
    assert "SIGUSR1" in status(run)["reason"]
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    again = start_job(run).finish()
    assert again.returncode == 0, again.output
    assert "the run is finished" in again.stdout
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert digest(run) == whole_digest(2)


@pytest.mark.parametrize("why", ["all damaged", "unknown option", "no python"])
def test_a_refused_job_does_not_use_the_status_of_the_job_before(start_faulty, start_job, tmp_path, why):
    """The job before was preempted and asked to be queued again. A job that cannot resume must not ask."""
    run, more = tmp_path / "run", []
    preempted, _ = start_faulty(run, Fault("step:1", "signal:SIGTERM"), world=1)
    assert preempted.finish().returncode == 0
    assert status(run)["state"] == "preempted"
    if why == "all damaged":
        for path in (run / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
    elif why == "unknown option":
        more = ["--nonsense"]
    else:
        (tmp_path / "programs" / "torchrun").write_text("#!/bin/sh\nexec /no/python\n")
    result = start_job(run, *more).finish(timeout=240)
    assert result.returncode == 1, result.output
    assert ("nothing began" if why == "no python" else "the run is failed") in result.stdout
    assert not (tmp_path / "asked").exists()
