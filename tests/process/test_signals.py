"""Child processes of a training survive the stop signals, and end with the training."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from seresnext.process.signals import STOP_SIGNALS, block_stop_signals
from seresnext.process.stop_request import StopRequest

ROOT = Path(__file__).parents[2]


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


def wait_for_the_end(pid, seconds):
    """Return whether a process still runs after so many seconds, and kill the process."""
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    survives = is_running(pid)
    if survives:
        os.kill(pid, signal.SIGKILL)
    return survives


# A worker of a launcher that ends. The worker asks for its own end before, later (as after a long import), or never.
LIFE = """
import multiprocessing, os, signal, subprocess, sys, time
from seresnext.process.signals import die_with_launcher, die_with_parent

kind, when = sys.argv[1:]

def live(ask):
    launcher = os.getppid()
    if when == "early":
        ask()
    os.write(1, str(os.getpid()).encode())
    while os.getppid() == launcher:
        time.sleep(0.01)
    if when == "late":
        ask()
    time.sleep(30)

if kind == "worker":
    live(die_with_launcher)
elif kind == "fork":
    ask = lambda: die_with_parent(signal.SIGKILL)
    multiprocessing.get_context("fork").Process(target=live, args=(ask,)).start()
else:
    subprocess.Popen([sys.executable, __file__, "worker", when])
sys.stdin.readline()
os._exit(0)
"""


@pytest.mark.parametrize("when", ["early", "late", "never"])
@pytest.mark.parametrize("kind", ["fork", "torchrun", "no torchrun"])
def test_a_process_ends_with_its_launcher_from_the_first_moment(tmp_path, kind, when):
    """A loader worker is a fork. Without torchrun a process outlives the shell."""
    (tmp_path / "life.py").write_text(LIFE)
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    env |= {"PYTHONPATH": str(ROOT), **({"RANK": "1"} if kind == "torchrun" else {})}
    command = [sys.executable, tmp_path / "life.py", kind, when]
    launcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert launcher.stdin
    assert launcher.stdout
    pid = int(os.read(launcher.stdout.fileno(), 32))
    launcher.stdin.close()
    launcher.wait()
    launcher.stdout.close()
    survives = kind == "no torchrun" or when == "never"
    assert wait_for_the_end(pid, 0.5 if survives else 10) is survives
