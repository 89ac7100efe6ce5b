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
        threading.Thread(target=lambda heart=heart: said.update({heart._rank: heart.loss(RuntimeError(GLOO))}))
        for heart in hearts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_a_silent_rank_is_named_by_the_first_that_is_left(hearts):
    ranks = hearts(4)
    ranks[0].doing = "step 7"
    time.sleep(0.5)
    freeze(ranks[0])
    said = lost(ranks[1:])
    assert {str(message) for message in said.values()} == {
        "rank 0 no longer answers, last heard of in step 7; it was killed, for memory perhaps, it is frozen, or its "
        "machine is gone. The same command goes on from the last checkpoint"
    }
    assert {rank: message.is_said for rank, message in said.items()} == {1: False, 2: True, 3: True}


def test_a_failed_rank_is_quoted(hearts):
    ranks = hearts(3)
    ranks[1].doing = "step 3"
    ranks[1].stop("MemoryError")
    said = lost([ranks[0], ranks[2]])
    assert str(said[0]).startswith("rank 1 failed in step 3: MemoryError. The same command")
    assert [said[0].is_said, said[2].is_said] == [True, True]  # It has said so itself.


def test_a_rank_that_left_for_anothers_sake_is_not_blamed(hearts):
    ranks = hearts(3)
    freeze(ranks[1])
    ranks[2].stop("")
    assert str(lost([ranks[0]])[0]).startswith("rank 1 no longer answers, last heard of in the start; it was")


def test_ranks_that_all_answer_say_where_they_are(hearts):
    """The control: nobody is lost, and nobody is named as lost."""
    ranks = hearts(2)
    ranks[0].doing, ranks[1].doing = "step 5", "the save after step 4"
    time.sleep(0.5)
    assert "all of them answer: rank 0 in step 5, rank 1 in the save after step 4" in str(lost(ranks[:1])[0])


def test_other_errors_are_left_alone(hearts):
    (alone,) = hearts(1)
    for error in (RuntimeError("shapes do not match"), ZeroDivisionError(), KeyboardInterrupt()):
        assert not is_of_collective(error)
        assert alone.loss(error) is None


def test_a_store_that_went_away_is_said():
    class Gone:
        def set(self, *words):
            raise dist.DistNetworkError("connection reset")

        multi_get = set

    heart = Heartbeat(Gone(), 0, 2, 1.0)  # pyright: ignore[reportArgumentType]
    heart.start()
    assert "the process that keeps the ranks together is gone" in str(heart.loss(RuntimeError(GLOO)))
    heart.stop("")
    assert isinstance(heart.loss(dist.DistBackendError("nccl")), RankLost)


# Two ranks in one process. The main thread waits for ever, as in a collective of a rank that froze.
SILENCE = """
import sys, time
import torch.distributed as dist
from seresnext.distributed.heartbeat import Heartbeat

store = dist.HashStore()
one, other = (Heartbeat(store, rank, 2, 0.5) for rank in range(2))
one.on_loss = lambda message: print("told", message[:21], flush=True)
one.start()
other.start()
time.sleep(1.5)
print("alive", flush=True)
if sys.argv[1] == "freezes":
    other._ended.set()
elif sys.argv[1] == "leaves":
    other.stop("")
time.sleep(2)
print("still alive")
"""


@pytest.mark.parametrize(("what", "ends"), [("freezes", True), ("leaves", False), ("stays", False)])
def test_silence_ends_a_rank_that_waits(what, ends):
    result = subprocess.run([sys.executable, "-c", SILENCE, what], capture_output=True, text=True, timeout=60)
    if ends:
        assert result.returncode == 1
        assert result.stdout == "alive\ntold rank 1 no longer answ\n"
        assert result.stderr.startswith("error (rank 0): rank 1 no longer answers")
    else:
        assert (result.returncode, result.stdout) == (0, "alive\nstill alive\n")
