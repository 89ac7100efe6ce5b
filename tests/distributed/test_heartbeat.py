"""Heartbeats: a lost rank and a failed rank are named, and a busy rank is not."""

import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from seresnext.distributed.heartbeat import Heartbeat
from seresnext.errors import RankLost

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:36921"


@pytest.fixture
def hearts():
    """`hearts(3, timeout=1)`: start the heartbeats of three ranks, which end with the test."""
    made = []

    def make(size, timeout=1.0):
        store = dist.HashStore()
        made.extend(Heartbeat(store, rank, size, timeout) for rank in range(size))
        for heart in made:
            heart.start()
        while any(not heart._known for heart in made):
            time.sleep(0.01)
        return list(made)

    yield make
    for heart in made:
        heart.stop("")


def freeze(heart):
    """Stop the beats, like a rank that is killed or frozen."""
    heart._ended.set()
    heart._thread.join()


def lost(hearts):
    """Return the message of each of these ranks after a failed collective, all at the same time."""
    said = {}
    threads = [
        threading.Thread(target=lambda heart=heart: said.update({heart._rank: heart.explain(RuntimeError(GLOO))}))
        for heart in hearts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


@pytest.fixture
def ended(monkeypatch):
    """`ended(heart) -> [...]`: wait for the end of the process, at most three timeouts, and return the messages."""
    exits = threading.Event()
    monkeypatch.setattr("seresnext.distributed.heartbeat.os._exit", lambda code: exits.set())

    def wait(heart, stays=False):
        told = []
        heart.on_peer_lost = told.append
        if not exits.wait(3 * heart.timeout):
            raise TimeoutError
        heart._ended.set()
        if not stays:
            freeze(heart)
        return told

    return wait


def test_a_silent_rank_is_named_by_the_first_that_is_left(hearts):
    ranks = hearts(4)
    ranks[0].activity = "step 7"
    for rank in ranks:
        rank.advice = lambda: "A resume continues from step-7"
    time.sleep(0.5)
    freeze(ranks[0])
    said = lost(ranks[1:])
    (message,) = {str(message) for message in said.values()}
    assert message.startswith("rank 0 ")
    assert "step 7" in message
    assert message.endswith("A resume continues from step-7")
    assert {rank: message.is_printed for rank, message in said.items()} == {1: False, 2: True, 3: True}


def test_a_failed_rank_is_quoted(hearts):
    ranks = hearts(3)
    ranks[1].activity = "step 3"
    ranks[1].stop("MemoryError")
    said = lost([ranks[0], ranks[2]])
    assert str(said[0]).startswith("rank 1 ")
    assert "step 3: MemoryError" in str(said[0])
    assert [said[0].is_printed, said[2].is_printed] == [True, True]  # The failed rank prints its own failure.


def test_a_rank_that_ended_because_of_a_lost_rank_is_not_named(hearts):
    ranks = hearts(3)
    freeze(ranks[1])
    ranks[2].stop("")
    assert str(lost([ranks[0]])[0]).startswith("rank 1 no longer answers, last seen in the start; the rank was killed")


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_deadlock_ends_all_ranks(hearts, ended, waiting):
    """The lowest rank prints the message, whether it waited in a collective or not."""
    ranks = hearts(2)
    ranks[0].activity, ranks[1].activity = "step 5", "the save after step 4"
    time.sleep(0.5)
    (found,) = lost([ranks[waiting]]).values()
    ranks[waiting].stop(found.end)
    told = ended(ranks[1 - waiting])
    assert [found.is_printed, told == []] == ([False, True] if waiting == 0 else [True, False])
    text = "waits for another: rank 0 in step 5, rank 1 in the save after step 4"
    assert all(text in message for message in (str(found), *told))


def test_other_errors_are_left_alone(hearts):
    (alone,) = hearts(1)
    for error in (RuntimeError("shapes do not match"), ZeroDivisionError(), KeyboardInterrupt()):
        assert alone.explain(error) is None


class Moody:
    """A store of rank 0 of two that fails on some calls."""

    def __init__(self, fails):
        self._store = dist.HashStore()
        self._store.set("1", '[1, "", ""]')
        self._fails = fails
        self.calls = 0

    def __getattr__(self, name):
        def call(*words):
            self.calls += 1
            if self._fails(self.calls):
                raise dist.DistStoreError("wait timeout after 30000ms")
            return getattr(self._store, name)(*words)

        return call


def test_beats_continue_after_one_error_of_the_store():
    heart = Heartbeat(Moody(lambda call: call == 2), 0, 2, 1.0)  # pyright: ignore[reportArgumentType]
    heart.start()
    time.sleep(1.5)
    assert heart._thread.is_alive()
    assert heart._count >= 3
    heart.stop("")


def test_a_store_that_is_gone_is_reported_and_beats_stop_after_the_timeout():
    """Control. The store is not called all the time, because torch logs each failure."""
    store = Moody(lambda call: True)
    heart = Heartbeat(store, 0, 2, 1.0)  # pyright: ignore[reportArgumentType]
    heart.start()
    heart._thread.join(5)
    assert not heart._thread.is_alive()
    assert 2 <= store.calls <= 5
    for error in (RuntimeError(GLOO), dist.DistBackendError("nccl")):
        lost = heart.explain(error)
        assert isinstance(lost, RankLost)
        assert "the process that connects the ranks" in str(lost)
    heart.stop("")


class Slow:
    """A store of rank 0 of two that answers later from some call on: after seconds, or never."""

    def __init__(self, seconds=None):
        self._store, self._seconds = Moody(lambda call: False), seconds
        self.is_slow, self.released = False, threading.Event()

    def __getattr__(self, name):
        def call(*words):
            if self.is_slow:
                self.released.wait(self._seconds)
            return getattr(self._store, name)(*words)

        return call


@pytest.mark.parametrize("prints", [True, False])
def test_a_store_that_never_answers_ends_the_process(ended, capsys, prints):
    """A torch store can wait without end for a machine that is gone, in this thread and in an explanation."""
    store = Slow()
    heart = Heartbeat(store, 0, 2, 1.0)  # pyright: ignore[reportArgumentType]
    heart.watches_store, heart.prints = True, prints
    heart.start()
    while not heart._answers:
        time.sleep(0.01)
    store.is_slow = True
    try:
        told = ended(heart, stays=True)
    finally:
        store.released.set()
    assert [message.startswith("the process that connects the ranks ") for message in told[:1]] == [True] * prints
    assert ("no longer answers" in capsys.readouterr().err) == prints


@pytest.mark.parametrize(
    ("seconds", "watches", "answers"),
    [(0.3, True, True), (5.0, False, True), (5.0, True, False)],
    ids=["slow", "on the same machine", "before all ranks have started"],
)
def test_another_store_ends_nothing(ended, seconds, watches, answers):
    """Control."""
    store = Slow(seconds)
    heart = Heartbeat(store, 0, 2, 0.8)  # pyright: ignore[reportArgumentType]
    heart.watches_store, store.is_slow = watches, not answers
    heart.start()
    store.is_slow = True
    with pytest.raises(TimeoutError):
        ended(heart)
    store.released.set()
    heart.stop("")


# Each case is two ranks in one process. The process is a fork, because the import of torch takes seconds. The main
# thread waits, as in a collective with a frozen rank.
SILENCE = """
import os, sys, time
import torch.distributed as dist
from seresnext.distributed import heartbeat
from seresnext.distributed.heartbeat import Heartbeat
from seresnext.process.signals import critical_section

heartbeat._INTERVAL, heartbeat._STOPPING, heartbeat._FAILING = 0.1, 1.0, 1.0

def live(what, timeout):
    store = dist.HashStore()
    one, other = (Heartbeat(store, rank, 2, timeout) for rank in range(2))
    one.on_peer_lost = lambda message: print("told", message[:21], flush=True)
    one.start()
    other.start()
    time.sleep(1.5)
    print("alive", flush=True)
    if "stop" in what:
        one.is_stopping = lambda: True
    writing = critical_section()
    if "writes" in what:
        writing.__enter__()
    if "freezes" in what:
        other._ended.set()
    elif "leaves" in what:
        other.stop("")
    elif "fails" in what:
        other.stop("MemoryError")
    time.sleep(2.5)
    print("still alive", flush=True)

children = []
for number, case in enumerate(sys.argv[2:]):
    pid = os.fork()
    if pid == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[1]}/{number}-{stream}", os.O_CREAT | os.O_WRONLY), stream)
        what, timeout = case.split(": ")
        live(what, float(timeout))
        os._exit(0)
    children.append(pid)
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""
CASES = {
    "freezes: 0.5": True,
    "leaves: 0.5": False,
    "stays: 0.5": False,
    # After a stop request torchrun kills before the timeout. Healthy ranks have all that time for a save.
    "freezes, stop: 60": True,
    "freezes: 60": False,
    "freezes, stop, writes: 60": False,
    "leaves, stop: 60": False,
    "stays, stop: 60": False,
    # A failed rank prints its own failure.
    "fails: 60": True,
    "fails, writes: 60": False,
}


@pytest.fixture(scope="module")
def silences(tmp_path_factory):
    """Return the exit code, stdout and stderr of each case."""
    folder = tmp_path_factory.mktemp("silences")
    words = [sys.executable, "-c", SILENCE, folder, *CASES]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    codes = map(int, result.stdout.split())
    printed = ([(folder / f"{number}-{stream}").read_text() for stream in (1, 2)] for number in range(len(CASES)))
    return {case: (code, *texts) for case, code, texts in zip(CASES, codes, printed, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_silence_ends_a_rank_that_waits(silences, case):
    code, told, error = silences[case]
    if not CASES[case]:
        assert (code, told, error) == (0, "alive\nstill alive\n", "")
    elif case.startswith("fails"):
        assert (code, told, error) == (1, "alive\n", "")
    else:
        assert (code, told) == (1, "alive\ntold rank 1 no longer answ\n")
        assert error.startswith("error (rank 0): rank 1 no longer answers")
