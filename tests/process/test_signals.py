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
@pytest.mark.parametrize(("blocked", "survives"), [(True, True), (False, False)])
def test_stop_signals_do_not_end_blocked_children(blocked, survives, number):
    """The signal still reaches this process, by the thread of the StopRequest."""
    with StopRequest() as stop:
        stop.defer()
        with block_stop_signals() if blocked else nullcontext():
            child = subprocess.Popen(
                [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1
            )
            assert child.stdout
            child.stdout.read(1)
            child.send_signal(number)
            os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.signal == number.name
        try:
            child.wait(0.3)
        except subprocess.TimeoutExpired:
            assert survives
        else:
            assert not survives
        child.kill()
        child.communicate()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS) == set()


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def orphan(begin):
    """Return the process id of a child that called `begin`. The parent of the child has ended."""
    receiver, sender = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = os.fork()
        if child == 0:
            begin()
            os.write(sender, str(os.getpid()).encode())
            time.sleep(30)
            os._exit(0)
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


@pytest.mark.parametrize(
    ("begin", "survives"),
    [(lambda: die_with_parent(signal.SIGKILL), False), (lambda: None, True)],
    ids=["asked", "control"],
)
def test_a_child_ends_with_its_parent(begin, survives):
    assert wait_for_the_end(orphan(begin), 0.5 if survives else 10) is survives


def test_a_child_of_an_ended_parent_ends_too():
    receiver, sender = os.pipe()

    def work(parent):
        os.write(sender, str(os.getpid()).encode())
        while os.getppid() == parent:
            time.sleep(0.01)
        die_with_parent(signal.SIGKILL)
        time.sleep(30)

    middle = os.fork()
    if middle == 0:
        multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),)).start()
        os._exit(0)
    os.waitpid(middle, 0)
    pid = int(os.read(receiver, 32))
    os.close(receiver)
    os.close(sender)
    assert not wait_for_the_end(pid, 10)


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
    launcher = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]);sys.stdin.readline()"
    )
    clean = {name: value for name, value in os.environ.items() if name != "RANK"}
    middle = subprocess.Popen(
        [sys.executable, "-c", launcher, BEGINNING, when], stdin=-1, stdout=sender, env={**clean, **env}
    )
    pid = int(os.read(receiver, 32))
    middle.communicate(b"\n")
    os.close(receiver)
    os.close(sender)
    assert wait_for_the_end(pid, 0.5 if survives else 10) is survives
