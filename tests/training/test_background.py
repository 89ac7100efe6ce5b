"""The background thread: one action at a time, and exceptions are raised by `wait`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from seresnext.training.saving import Background


@pytest.fixture
def background():
    return Background()


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


def test_the_action_runs_in_another_thread(background):
    begun, may_end, threads = threading.Event(), threading.Event(), []
    others = set(threading.enumerate())  # for example of the compiler, from other tests

    def action() -> None:
        begun.set()
        assert may_end.wait(60)
        threads.append(threading.current_thread())

    background.start(action)
    assert begun.wait(60)  # The caller continues during the action.
    assert threads == []
    may_end.set()
    background.wait()
    assert threads[0] is not threading.current_thread()
    threads[0].join()
    assert set(threading.enumerate()) <= others  # No thread is left when the loader forks.


def test_waiting_for_nothing(background):
    background.wait()
    assert background.has_failed is False


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ZeroDivisionError()])
def test_wait_raises_the_exception_once(background, error):
    background.start(raising(error))
    with pytest.raises(type(error)) as caught:
        background.wait()
    assert caught.value is error
    background.wait()
    assert background.has_failed is False
    done = []
    background.start(lambda: done.append(1))
    background.wait()
    assert done == [1]


def test_a_failure_can_be_seen_without_waiting(background):
    may_fail, over = threading.Event(), threading.Event()

    def action() -> None:
        try:
            assert may_fail.wait(60)
            raise OSError("full")
        finally:
            over.set()

    background.start(action)
    assert background.has_failed is False
    may_fail.set()
    assert over.wait(60)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    assert background.has_failed is True
    with pytest.raises(OSError, match="full"):
        background.wait()


def test_success_is_no_failure(background):
    background.start(lambda: None)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    assert background.has_failed is False


def test_a_second_action_needs_a_wait_for_the_first(background):
    background.start(lambda: None)
    with pytest.raises(AssertionError):
        background.start(lambda: None)
    background.wait()


def test_the_process_waits_for_the_thread_at_exit(tmp_path):
    """Also without a call of `wait`, after an exception that ends the process."""
    script = f"""
import time
from pathlib import Path
from seresnext.training.saving import Background

def action():
    time.sleep(0.5)
    Path({os.fspath(tmp_path / "written")!r}).touch()

Background().start(action)
raise SystemExit(5)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert done.returncode == 5
    assert (tmp_path / "written").exists()
