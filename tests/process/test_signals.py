"""Child processes of a training survive the stop signals, and end with the training."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from seresnext.process.signals import STOP_SIGNALS, block_stop_signals, die_with_parent
from seresnext.process.stop_request import StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("blocked", [True, False])
def test_stop_signals_do_not_end_blocked_children(blocked, number):
    """The signal still reaches this process, by the thread of the StopRequest."""
    sleeper = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with StopRequest() as stop:
        stop.defer()
        with block_stop_signals() if blocked else nullcontext():
            child = subprocess.Popen(sleeper, stdout=subprocess.PIPE)
            assert child.stdout
            child.stdout.read(1)
            child.send_signal(number)
            os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.signal == number.name
        assert wait_for_the_end(child.pid, 0.3 if blocked else 5) is blocked
        child.communicate()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS) == set()


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def orphan(before, after):
    """Return the process id of a child that calls `before`, loses its parent, and calls `after`."""
    receiver, sender = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()

        def live():
            before()
            os.write(sender, str(os.getpid()).encode())
            while os.getppid() == parent:
                time.sleep(0.01)
            after()
            time.sleep(30)

        multiprocessing.get_context("fork").Process(target=live).start()
        select.select([receiver], [], [])
        os._exit(0)
    os.waitpid(middle, 0)
    pid = int(os.read(receiver, 32))
    os.close(receiver)
    os.close(sender)
    return pid


def wait_for_the_end(pid, seconds):
    """Return whether a process still runs after so many seconds, and kill the process."""
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    survives = is_running(pid)
    if survives:
        os.kill(pid, signal.SIGKILL)
    return survives


def nothing():
    pass


def ask():
    die_with_parent(signal.SIGKILL)


@pytest.mark.parametrize(
    ("before", "after", "survives"),
    [(ask, nothing, False), (nothing, ask, False), (nothing, nothing, True)],
    ids=["asked", "asked too late", "control"],
)
def test_a_child_ends_with_its_parent(before, after, survives):
    assert wait_for_the_end(orphan(before, after), 0.5 if survives else 10) is survives


# A process of torchrun. The launcher ends before the import of torch, or during the import.
BEGINNING = """
import os, sys, time
if sys.argv[1] == "late":
    launcher = os.getppid()
    from seresnext.process.signals import die_with_launcher
    os.write(1, str(os.getpid()).encode())
    while os.getppid() == launcher:
        time.sleep(0.01)
    die_with_launcher()
else:
    from seresnext.process.signals import die_with_launcher
    die_with_launcher()
    os.write(1, str(os.getpid()).encode())
time.sleep(30)
"""


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize(("env", "survives"), [({"RANK": "1"}, False), ({}, True)], ids=["rank", "control"])
def test_a_process_of_torchrun_ends_with_it_from_the_first_moment(when, env, survives):
    receiver, sender = os.pipe()
    launcher = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); sys.stdin.readline()"
    clean = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, "-c", launcher, BEGINNING, when]
    middle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sender, env={**clean, **env})
    pid = int(os.read(receiver, 32))
    middle.communicate(b"\n")
    os.close(receiver)
    os.close(sender)
    assert wait_for_the_end(pid, 0.5 if survives else 10) is survives
