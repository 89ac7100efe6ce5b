"""Signs of life: who is lost, who failed with what, and that a rank that is merely busy is neither."""

import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from seresnext.distributed.heartbeat import Heartbeat, is_of_collective
from seresnext.errors import RankLost

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:36921"


@pytest.fixture
def hearts():
    """`hearts(3, timeout=1)`: the heartbeats of three ranks, beating; they end with the test."""
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
    """What a rank that no longer runs looks like from outside."""
    heart._ended.set()
    heart._thread.join()


def lost(hearts):
    """What every one of these ranks says of a failed collective, asked at the same time."""
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
    """`ended(heart) -> [...]`: what it said when it ended its process, which it may take three timeouts to do."""
    exits = threading.Event()
    monkeypatch.setattr("seresnext.distributed.heartbeat.os._exit", lambda code: exits.set())

    def wait(heart):
        told = []
        heart.on_peer_lost = told.append
        if not exits.wait(3 * heart.timeout):
            raise TimeoutError
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
    assert {rank: message.is_said for rank, message in said.items()} == {1: False, 2: True, 3: True}


def test_a_failed_rank_is_quoted(hearts):
    ranks = hearts(3)
    ranks[1].activity = "step 3"
    ranks[1].stop("MemoryError")
    said = lost([ranks[0], ranks[2]])
    assert str(said[0]).startswith("rank 1 ")
    assert "step 3: MemoryError" in str(said[0])
    assert [said[0].is_said, said[2].is_said] == [True, True]  # It has said so itself.


def test_a_rank_that_left_for_anothers_sake_is_not_blamed(hearts):
    ranks = hearts(3)
    freeze(ranks[1])
    ranks[2].stop("")
    assert str(lost([ranks[0]])[0]).startswith("rank 1 no longer answers, last seen in the start; the rank was killed")


def test_ranks_that_all_answer_say_where_they_are(hearts):
    """The control: nobody is lost, and nobody is named as lost."""
    ranks = hearts(2)
    ranks[0].activity, ranks[1].activity = "step 5", "the save after step 4"
    time.sleep(0.5)
    assert "waits for another: rank 0 in step 5, rank 1 in the save after step 4" in str(lost(ranks[:1])[0])


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_rank_that_others_waited_for_in_vain_ends_too(hearts, ended, waiting):
    """Wherever it is, and though nobody is lost; the first says so, be it the one that waited or the other."""
    ranks = hearts(2)
    (found,) = lost([ranks[waiting]]).values()
    ranks[waiting].stop(found.end)
    told = ended(ranks[1 - waiting])
    assert [found.is_said, told == []] == ([False, True] if waiting == 0 else [True, False])
    assert all("waits for another: rank 0 in the start, rank 1 in the start" in message for message in told)


def test_a_rank_that_others_left_well_goes_on(hearts, ended):
    """The control."""
    ranks = hearts(2)
    ranks[0].stop("")
    with pytest.raises(TimeoutError):
        ended(ranks[1])


def test_other_errors_are_left_alone(hearts):
    (alone,) = hearts(1)
    for error in (RuntimeError("shapes do not match"), ZeroDivisionError(), KeyboardInterrupt()):
        assert not is_of_collective(error)
        assert alone.explain(error) is None


def test_a_store_that_went_away_is_said():
    class Gone:
        def set(self, *words):
            raise dist.DistNetworkError("connection reset")

        multi_get = set

    heart = Heartbeat(Gone(), 0, 2, 1.0)  # pyright: ignore[reportArgumentType]
    heart.start()
    assert "the process that connects the ranks" in str(heart.explain(RuntimeError(GLOO)))
    heart.stop("")
    assert isinstance(heart.explain(dist.DistBackendError("nccl")), RankLost)


class Moody:
    """A store that fails on some of its calls."""

    def __init__(self, fails):
        self._store = dist.HashStore()
        self._fails = fails
        self.calls = 0

    def set(self, *words):
        return self._call(self._store.set, words)

    def multi_get(self, *words):
        return self._call(self._store.multi_get, words)

    def _call(self, function, words):
        self.calls += 1
        if self._fails(self.calls):
            raise dist.DistStoreError("wait timeout after 30000ms")
        return function(*words)


def test_one_error_of_the_store_mutes_nobody():
    heart = Heartbeat(Moody(lambda call: call == 2), 0, 1, 1.0)  # pyright: ignore[reportArgumentType]
    heart.start()
    time.sleep(1.5)
    assert heart._thread.is_alive()
    assert heart._count >= 3
    heart.stop("")


def test_a_store_that_stays_away_is_given_up_after_the_timeout():
    """The control; and not asked all the time, since torch logs each failure."""
    store = Moody(lambda call: True)
    heart = Heartbeat(store, 0, 1, 1.0)  # pyright: ignore[reportArgumentType]
    heart.start()
    heart._thread.join(5)
    assert not heart._thread.is_alive()
    assert 2 <= store.calls <= 5
    heart.stop("")


# Each case is two ranks in one process, a fork since the import of torch takes seconds. The main thread waits for ever,
# as in a collective of a rank that froze.
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
    # torchrun told to stop, and would kill before the timeout. Who is healthy has all the time of that for a save.
    "freezes, stop: 60": True,
    "freezes: 60": False,
    "freezes, stop, writes: 60": False,
    "leaves, stop: 60": False,
    "stays, stop: 60": False,
    # Who failed has said why by itself.
    "fails: 60": True,
    "fails, writes: 60": False,
}


@pytest.fixture(scope="module")
def silences(tmp_path_factory):
    """How each case ended: its exit code, and what was printed on stdout and stderr."""
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
