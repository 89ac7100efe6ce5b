"""Heartbeats: a lost rank and a failed rank are named, and a busy rank is not."""

import itertools
import time
from unittest.mock import DEFAULT, Mock

import launcher
import pytest
import torch.distributed as dist

from seresnext.distributed.heartbeat import Heartbeat
from seresnext.errors import RankLost

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:36921"


@pytest.mark.parametrize(
    ("silent", "ended", "message", "printing"),
    [
        ([0], {}, "rank 0 no longer answers, last seen in step 0; the rank was killed (perhaps", [1]),
        ([1], {2: ""}, "rank 1 no longer answers, last seen in step 1; the rank was killed (perhaps", [0]),
        ([], {1: "MemoryError"}, "rank 1 failed in step 1: MemoryError. Resume", []),  # Rank 1 prints its own failure.
        ([0], {1: "full"}, "rank 1 failed in step 1: full; rank 0 no longer answers, last seen in step 0", [2]),
        ([], {}, "deadlock: all ranks are alive, but each waits for another: rank 0 in step 0, rank 1 in st", [0]),
    ],
    ids=["silent", "ended because of a lost rank", "failed", "both", "deadlock"],
)
def test_a_failed_collective_is_explained(monkeypatch, silent, ended, message, printing):
    """The lowest rank that is left prints the message."""
    store = dist.HashStore()
    ranks = [Heartbeat(store, rank, 3) for rank in range(3)]
    left = [rank for rank in range(3) if rank not in (*silent, *ended)]
    for number, rank in enumerate(ranks):
        rank.activity, rank.advice = f"step {number}", lambda: "Resume from step-7"
        rank._publish(ended.get(number))
    found = {}
    for rank in left:
        others = [ranks[other] for other in left if other != rank]
        monkeypatch.setattr("time.sleep", lambda seconds, others=others: [other._publish(None) for other in others])
        found[rank] = ranks[rank].explain(RuntimeError(GLOO))
    for lost in found.values():
        assert str(lost).startswith(message)
        assert str(lost).endswith(". Resume from step-7")
        assert lost.end == ("deadlock" if message.startswith("deadlock") else "")
    assert [rank for rank, lost in found.items() if not lost.is_printed] == printing


def test_other_errors_are_left_alone():
    for error in (RuntimeError("shapes do not match"), ZeroDivisionError(), KeyboardInterrupt()):
        assert Heartbeat().explain(error) is None


def test_beats_continue_after_one_error_of_the_store():
    store = Mock(wraps=dist.HashStore())
    store.set.side_effect = itertools.chain([dist.DistStoreError("wait timeout")], itertools.repeat(DEFAULT))
    heart = Heartbeat(store, timeout=0.5)
    heart.start()
    time.sleep(1)
    assert heart._thread.is_alive()
    assert store.set.call_count >= 3
    heart.stop("")


def test_a_store_that_is_gone_is_reported_and_beats_stop_after_the_timeout():
    """Control. The store is not called all the time, because torch logs each failure."""
    store = Mock()
    store.set.side_effect = store.multi_get.side_effect = dist.DistStoreError("wait timeout after 30000ms")
    heart = Heartbeat(store, 0, 2, 1.0)
    heart.start()
    heart._thread.join(5)
    assert not heart._thread.is_alive()
    assert 2 <= store.set.call_count <= 5
    for error in (RuntimeError(GLOO), dist.DistBackendError("nccl")):
        lost = heart.explain(error)
        assert isinstance(lost, RankLost)
        assert "the process that connects the ranks" in str(lost)
    heart.stop("")


# Each case is two ranks in one process. The process is a fork, because the import of torch takes seconds. The main
# thread waits, as in a collective with a frozen rank. A torch store can wait without end for a machine that is gone.
SILENCE = """
import os, sys, time
import torch.distributed as dist
from seresnext.distributed import heartbeat
from seresnext.distributed.heartbeat import Heartbeat
from seresnext.process.signals import critical_section

os.environ["RANK"] = "0"
heartbeat._INTERVAL, heartbeat._STOPPING, heartbeat._FAILING = 0.1, 1.0, 1.0

class Store:
    delay = 0.0
    def __init__(self):
        self.store = dist.HashStore()
    def __getattr__(self, name):
        return lambda *words: (time.sleep(self.delay), getattr(self.store, name)(*words))[1]

def live(what, timeout):
    store = Store()
    one, other = (Heartbeat(store, rank, 2, timeout) for rank in range(2))
    one.on_peer_lost = lambda message: print("told", message[:21], flush=True)
    one.watches_store, one.prints = "remote" in what, "second" not in what
    if "starts" in what:
        store.delay = 60
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
    elif "deadlock" in what:
        other.stop("deadlock")
    elif "hangs" in what:
        store.delay = 60
    elif "slow" in what:
        store.delay = 0.2
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
with open(f"{sys.argv[1]}/codes", "w") as file:
    print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children), file=file)
"""
# The start of the message, if the process ends; nothing if another process prints the message.
CASES = {
    "freezes: 0.5": "rank 1 no longer answers",
    "leaves: 0.5": None,
    "stays: 0.5": None,
    # After a stop request torchrun kills before the timeout. Healthy ranks have all that time for a save.
    "freezes, stop: 60": "rank 1 no longer answers",
    "freezes: 60": None,
    "freezes, stop, writes: 60": None,
    "leaves, stop: 60": None,
    "stays, stop: 60": None,
    # A failed rank prints its own failure.
    "fails: 60": "",
    "fails, writes: 60": None,
    "deadlock: 60": "deadlock: all ranks are alive",
}
STORES = {
    "remote, hangs: 0.5": "the process that connects the ranks ",
    "remote, second rank of its machine, hangs: 0.5": "",
    "remote, hangs, writes: 0.5": None,
    "remote, slow: 1": None,
    "remote, starts before all ranks are there: 0.5": None,
    "on the same machine, hangs: 0.5": None,
}


@pytest.fixture(scope="module")
def silences(tmp_path_factory):
    """Return the exit code, stdout and stderr of each case."""
    folder, cases = tmp_path_factory.mktemp("silences"), [*CASES, *STORES]
    (folder / "silence.py").write_text(SILENCE)
    launcher.complete(1, [folder / "silence.py", folder, *cases])
    codes = map(int, (folder / "codes").read_text().split())
    printed = ([(folder / f"{number}-{stream}").read_text() for stream in (1, 2)] for number in range(len(cases)))
    return {case: (code, *texts) for case, code, texts in zip(cases, codes, printed, strict=True)}


def check_end(found, message):
    code, told, error = found
    if message is None:
        assert (code, told, error) == (0, "alive\nstill alive\n", "")
    else:
        assert (code, told) == (1, f"alive\ntold {message[:21]}\n" if message else "alive\n")
        assert error.startswith(f"error (rank 0): {message}") if message else error == ""


@pytest.mark.parametrize("case", CASES)
def test_silence_ends_a_rank_that_waits(silences, case):
    check_end(silences[case], CASES[case])


@pytest.mark.parametrize("case", STORES)
def test_a_store_that_never_answers_ends_the_process(silences, case):
    check_end(silences[case], STORES[case])
