"""`python -m seresnext.torchrun`: the exit codes of the workers, and no traceback."""

import inspect
import os
import signal
import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from launcher import PYTHON
from torch.distributed import DistNetworkError
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.launcher import api

from seresnext import torchrun


@pytest.fixture
def ends(monkeypatch):
    """`ends(error) -> code` where torchrun raises this, or nothing."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    for name in ("TORCH_CPP_LOG_LEVEL", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.setenv(name, "")  # The end of the test restores the variable.
        monkeypatch.delenv(name)
    limits = []
    monkeypatch.setattr(torchrun, "_limit_connections", limits.append)
    monkeypatch.setattr(api, "LocalElasticAgent", LocalElasticAgent)

    def end(error=None, words=("--standalone", "--nproc_per_node=2", "train.py", "--recipe", "x")):
        def run(options):
            assert options.training_script == "train.py"
            end.handled, end.options = options.signals_to_handle.split(","), options
            if error:
                raise error

        monkeypatch.setattr("torch.distributed.run.run", run)
        end.limits = limits
        return torchrun.main(words)

    return end


@pytest.mark.parametrize("ignored", [True, False])
def test_under_nohup_a_closed_terminal_is_ignored(ends, monkeypatch, ignored):
    found = {signal.SIGHUP: signal.SIG_IGN} if ignored else {}
    monkeypatch.setattr(signal, "getsignal", lambda number: found.get(number, signal.SIG_DFL))
    assert ends() == 0
    assert ends.handled == (["SIGTERM", "SIGINT", "SIGQUIT"] if ignored else ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])


@pytest.mark.parametrize("options", [[], ["--tee=3"]])
def test_only_logs_are_left_behind(run_command, tmp_path, options):
    command = [PYTHON, "-m", "seresnext.torchrun", "--standalone", *options, "--no-python", "true"]
    assert run_command(command, env={"TMPDIR": str(tmp_path)}).returncode == 0
    found = {path.name for path in tmp_path.rglob("*")}
    assert "stdout.log" in found if options else not found


def failed(exitcode, rank=1):
    return ChildFailedError("train.py", {rank: ProcessFailure(rank, 17, exitcode, "nowhere")})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SignalException("", sigval=signal.SIGINT), 130),
        (SignalException("", sigval=signal.SIGTERM), 143),
        (SignalException("", sigval=signal.SIGHUP), 129),
        *((failed(code), code) for code in (1, 2, 3, 4, 130)),
    ],
)
def test_the_code_of_a_signal_or_of_the_failed_worker_is_returned(ends, capsys, error, code):
    assert ends(error) == code
    assert capsys.readouterr().err == ""


def test_a_worker_that_was_killed_is_named(ends, capsys):
    assert ends(failed(-signal.SIGKILL)) == 137
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rank 1 ")
    assert "SIGKILL" in line


def test_ctrl_c_before_the_first_worker(ends, capsys):
    assert ends(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (["--nnodes=2"], 60),
        (["--nnodes=1:2", "--rdzv-conf=join_timeout=9,read_timeout=7"], 7),
        (["--nnodes=1"], None),
        (["--standalone"], None),
    ],
)
def test_several_machines_can_join_later_and_be_lost(ends, monkeypatch, words, seconds):
    variable = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert ends(words=[*words, "train.py"]) == 0
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"  # torch's warnings at a lost connection have 20 lines.
    assert (ends.limits, os.environ.get(variable)) == (([seconds], "1") if seconds else ([], None))
    barrier = {"exit_barrier_timeout": 15.0}
    assert getattr(api.LocalElasticAgent, "keywords", None) == (barrier if seconds else None)
    assert barrier.keys() < inspect.signature(LocalElasticAgent).parameters.keys()
    monkeypatch.setenv(variable, "0")  # The user's value stays.
    assert ends(words=[*words, "train.py"]) == 0
    assert os.environ[variable] == "0"


def test_the_machines_of_the_environment_are_read(ends, monkeypatch):
    """Kubeflow's runtime of torch sets these variables."""
    values = {"NNODES": "2", "NPROC_PER_NODE": "8", "NODE_RANK": "1", "MASTER_ADDR": "pod-0", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(f"PET_{name}", value)
    assert ends(words=["train.py"]) == 0
    options = ends.options
    assert [str(getattr(options, name.lower())) for name in values] == list(values.values())
    assert (options.rdzv_backend, ends.limits) == ("static", [60])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RendezvousConnectionError("The connection failed"), "Broken pipe"),
        (RendezvousTimeoutError(), "too few machines"),
    ],
)
def test_a_rendezvous_that_is_lost_is_one_line(ends, capsys, error, reason):
    error.__cause__ = DistNetworkError("Broken pipe\nframe #0") if str(error) else None
    assert ends(error, words=["--nnodes=2", "--rdzv-endpoint=first:29400", "train.py"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the machines of this run cannot meet at first:29400 ({reason}")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_connections_fail_after_the_limit(monkeypatch):
    monkeypatch.setattr(torchrun.time, "sleep", Mock(side_effect=InterruptedError))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        before = sorted(Path("/proc/self/fd").iterdir())
        with pytest.raises(InterruptedError):
            torchrun._limit_connections(8)
        assert sorted(Path("/proc/self/fd").iterdir()) == before
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        connection.sendall(b"still open")
        with server.accept()[0] as other:
            assert other.recv(10) == b"still open"
