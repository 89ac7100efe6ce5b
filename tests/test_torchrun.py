"""`python -m seresnext.torchrun`: the exit codes of the workers, and no traceback."""

from __future__ import annotations

import signal
import sys

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from seresnext import torchrun
from seresnext.process import packages


@pytest.fixture
def ends(monkeypatch):
    """`ends(error) -> code` where torchrun raises this, or nothing."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def end(error=None):
        def run(options):
            assert options.training_script == "train.py"
            end.handled = options.signals_to_handle.split(",")
            if error:
                raise error

        monkeypatch.setattr("torch.distributed.run.run", run)
        return torchrun.main(["--standalone", "--nproc_per_node=2", "train.py", "--recipe", "x"])

    return end


@pytest.mark.parametrize("ignored", [True, False])
def test_under_nohup_a_closed_terminal_is_ignored(ends, monkeypatch, ignored):
    found = {signal.SIGHUP: signal.SIG_IGN} if ignored else {}
    monkeypatch.setattr(signal, "getsignal", lambda number: found.get(number, signal.SIG_DFL))
    assert ends() == 0
    assert ends.handled == (["SIGTERM", "SIGINT", "SIGQUIT"] if ignored else ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])


def failed(exitcode, rank=1):
    return ChildFailedError("train.py", {rank: ProcessFailure(rank, 17, exitcode, "nowhere")})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SignalException("", sigval=signal.SIGINT), 130),
        (SignalException("", sigval=signal.SIGTERM), 143),
        (SignalException("", sigval=signal.SIGHUP), 129),
        (KeyboardInterrupt(), 130),  # before the first worker
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


def test_another_error_keeps_its_traceback(ends):
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_a_python_without_torch(capsys, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    assert torchrun.main(["train.py"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {sys.executable} ")
    assert " torch;" in message
