"""Signals ask; they do not interrupt."""

import os
import signal
import sys
import threading
import time

import pytest

from seresnext.signals import STOP_SIGNALS
from seresnext.training.stopping import StopRequest


@pytest.fixture
def stop():
    stop = StopRequest()
    stop.defer()
    return stop


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered(stop, number):
    with stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number.name


def test_the_first_signal_is_the_reason(stop):
    with stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGUSR1"


def test_handlers_and_the_thread_are_put_back(stop):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    threads = set(threading.enumerate())
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with stop:
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        (thread,) = set(threading.enumerate()) - threads
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(wakeup) == wakeup
    thread.join(5)
    assert not thread.is_alive()


def test_before_there_is_anything_to_save_ctrl_c_interrupts(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # A scheduler is not so impatient.
        assert stop.signal == "SIGTERM"


def test_a_process_of_torchrun_defers_from_the_start(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"


# Waits for a mutex that it holds already: for ever and outside of Python, as in a collective that never returns.
STUCK = """
import ctypes
from seresnext.training.stopping import StopRequest

stop = StopRequest()
stop.defer()
with stop:
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    print("stuck", flush=True)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_second_ctrl_c_ends_a_process_that_is_stuck(start_command):
    command = start_command([sys.executable, "-c", STUCK])
    command.wait_for(lambda: "stuck" in command.output)
    for pause in (0.05, 1):  # At first the same request comes twice.
        command.process.send_signal(signal.SIGINT)
        time.sleep(pause)
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGINT)
    assert command.finish(timeout=5).returncode == 130
