"""A stop signal is a request, and does not interrupt the training."""

import os
import signal
import sys
import threading
import time

import pytest

from seresnext.process.signals import STOP_SIGNALS
from seresnext.process.stop_request import StopRequest


@pytest.fixture
def stop():
    stop = StopRequest()
    stop.defer()
    return stop


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(stop, number, handler):
    """nohup ignores SIGHUP. SIGINT and SIGTERM are handled, since shells make background jobs ignore SIGINT."""
    is_taken = handler == signal.SIG_DFL or number in (signal.SIGINT, signal.SIGTERM)
    before = signal.signal(number, handler)
    try:
        with stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            assert (stop.requested, stop.has_come) == (is_taken, is_taken)
            assert stop.signal == (number.name if is_taken else None)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)


def test_the_first_signal_is_the_reason(stop):
    with stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGUSR1"


def test_leaving_restores_the_wakeup_and_ends_the_thread(stop):
    threads = set(threading.enumerate())
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with stop:
        (thread,) = set(threading.enumerate()) - threads
    assert signal.set_wakeup_fd(wakeup) == wakeup
    thread.join(5)
    assert not thread.is_alive()


def test_after_the_training_signals_end_the_process_again(stop):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop:
            stop.end()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with stop:
            os.kill(os.getpid(), signal.SIGINT)  # A request that came during the last step.
            with pytest.raises(KeyboardInterrupt):
                stop.end()
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_interrupts_before_training_begins(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # the signal of a scheduler
        assert stop.signal == "SIGTERM"


def test_a_process_of_torchrun_defers_from_the_start(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"


# A stuck process waits outside of Python for a mutex that the process holds, as in a collective that never returns. A
# healthy process reads the request, saves, and exits with 0.
STUCK = """
import ctypes, os, sys, time
from seresnext.process.signals import critical_section
from seresnext.process import stop_request

stop_request._STUCK = 1.5
stop = stop_request.StopRequest()
stop.defer()
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
with stop:
    lock(mutex)
    print("ready", flush=True)
    if sys.argv[1] == "stuck":
        lock(mutex)
    elif sys.argv[1] == "writes":
        with critical_section():
            time.sleep(3)
    while not stop.requested:
        time.sleep(0.1)
    time.sleep(float(sys.argv[2]))
    print("saved by", stop.signal, stop.has_come)
"""
OF_TORCHRUN = {"RANK": "0"}


@pytest.fixture
def start_stuck(start_command, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def start(*words, env=None):
        command = start_command([sys.executable, "-c", STUCK, *words], env=env)
        command.wait_for(lambda: "ready" in command.output)
        return command

    return start


def send(command, *signals_and_pauses):
    for number in signals_and_pauses:
        if isinstance(number, signal.Signals):
            command.process.send_signal(number)
        else:
            time.sleep(number)


def test_a_second_ctrl_c_ends_a_process_that_is_stuck(start_stuck):
    command = start_stuck("stuck", "0")
    send(command, signal.SIGINT, 0.05, signal.SIGINT, 1)  # the same request twice
    assert command.process.poll() is None
    send(command, signal.SIGINT)
    assert command.finish(timeout=5).returncode == 130


def test_a_sigterm_after_ctrl_c_leaves_the_time_for_a_save(start_stuck):
    """Slurm can send SIGINT some time before SIGTERM."""
    command = start_stuck("healthy", "2")
    send(command, signal.SIGINT, 0.6, signal.SIGTERM)
    result = command.finish(timeout=10)
    assert (result.returncode, result.stdout) == (0, "ready\nsaved by SIGINT True\n")


# torchrun sends the second Ctrl-C as SIGTERM, and may pass on the first Ctrl-C once more.
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("what", "seconds", "code"), [("stuck", "2", 130), ("healthy", "2", 0), ("writes", "0", 0)])
def test_under_torchrun_only_who_is_stuck_ends_at_once(start_stuck, second, what, seconds, code):
    command = start_stuck(what, seconds, env=OF_TORCHRUN)
    send(command, signal.SIGINT, 0.6, second)
    result = command.finish(timeout=15)
    assert result.returncode == code
    assert ("saved" in result.stdout) is (code == 0)


OTHERS = [number for number in STOP_SIGNALS if number not in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("others", [[], OTHERS], ids=["none", "others"])
def test_one_ctrl_c_does_not_end_a_stuck_process_nor_do_other_signals(start_stuck, others):
    """The control. A closed terminal after Ctrl-C, for example, leaves time for a save."""
    command = start_stuck("stuck", "0", env=OF_TORCHRUN)
    send(command, signal.SIGINT, 0.6, *others, 2)
    assert command.process.poll() is None


def test_other_signals_are_not_requests(stop):
    """Torch has a handler for the end of a loader worker."""
    before = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        with stop:
            os.kill(os.getpid(), signal.SIGCHLD)
            time.sleep(0.2)
            assert not stop.has_come
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
            assert stop.has_come
    finally:
        signal.signal(signal.SIGCHLD, before)
