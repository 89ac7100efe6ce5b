"""Stop signals are requests, which children survive, and a fork that hangs at once is replaced."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from multiprocessing import queues
from pathlib import Path

import pytest
from launcher import PYTHON

from seresnext.process import signals
from seresnext.process.signals import FORK, STOP_SIGNALS, StopRequest, block_stop_signals

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
        deadline = time.monotonic() + 20
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.signal == number.name
        assert wait_for_the_end(child.pid, 0.3 if blocked else 20) is blocked
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
from seresnext.process import signals

signals._STUCK = 1.5
stop = signals.StopRequest()
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


# The first fork of this process hangs, in place of the deadlock. A file records the hang.
HANGS_ONCE = """
import os, sys, time
from pathlib import Path

def hang_once():
    try:
        os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    time.sleep(600)

os.register_at_fork(after_in_child=hang_once)
"""
ANSWER = """
import multiprocessing
from seresnext.process import signals
signals.FORK_PATIENCE = 0.5
context = signals.FORK if sys.argv[2] == "checked" else multiprocessing.get_context("fork")
queue = context.SimpleQueue()
process = context.Process(target=queue.put, args=("begun",), daemon=True)
process.start()
process.join(5)
print(queue.get() if process.exitcode == 0 else "hangs")
process.kill()
"""
BATCHES = """
import numpy as np
from seresnext.data.loading.loader import evaluation_keys, open_batches
from seresnext.data.synthetic import SyntheticImages, SyntheticReader
from seresnext.process import signals
signals.FORK_PATIENCE = 0.5
source = SyntheticImages(SyntheticReader(8, 2), 16, 3, 0)
with open_batches(source, evaluation_keys(8, 2, 0, 1), workers=2, timeout=20, pin_memory=False) as batches:
    print(sum(len(batch.labels) for batch in batches), "images")
"""


@pytest.fixture
def answer(tmp_path, run_command):
    """`answer(script, word)`: the output of a process whose first fork hangs."""

    def answer(script: str, word: str = "") -> str:
        (tmp_path / "script.py").write_text(HANGS_ONCE + script)
        result = run_command([PYTHON, tmp_path / "script.py", tmp_path / "happened", word])
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "happened").exists()
        return result.stdout.strip()

    return answer


@pytest.mark.full
@pytest.mark.parametrize(("kind", "end"), [("checked", "begun"), ("plain", "hangs")])
def test_a_fork_that_hangs_at_once_is_replaced(answer, kind, end):
    """Multiprocessing's own context is the control."""
    assert answer(ANSWER, kind) == end


def test_a_loader_worker_that_hangs_at_once_is_replaced(answer):
    assert answer(BATCHES) == "8 images"


def test_the_last_attempt_takes_its_time(monkeypatch):
    """Each attempt is slow here, and the last one still works."""

    class Slow(signals.ForkProcess):
        def _bootstrap(self, parent_sentinel: int | None = None) -> int:
            time.sleep(0.5)
            return super()._bootstrap(parent_sentinel)

    monkeypatch.setattr(signals, "FORK_PATIENCE", 0.05)
    queue: queues.SimpleQueue[int] = FORK.SimpleQueue()
    process = Slow(target=queue.put, args=(3,), daemon=True)
    process.start()
    assert queue.get() == 3
    process.join()
    assert process.exitcode == 0


def test_a_process_that_ends_at_once_does_not_count_as_hanging_and_leaves_no_descriptor_open():
    def run() -> int:
        process = FORK.Process(target=os._exit, args=(7,), daemon=True)
        process.start()
        process.join()
        assert process.exitcode == 7
        process.close()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    started = time.monotonic()
    assert len({run() for _ in range(5)}) == 1
    assert time.monotonic() - started < signals.FORK_PATIENCE
