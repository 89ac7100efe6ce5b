"""A fork that hangs before its first instruction is replaced."""

import os
import subprocess
import sys
import time
from multiprocessing import queues

import pytest

from seresnext.process import fork
from seresnext.process.fork import FORK

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
from seresnext.process import fork
fork.PATIENCE = 0.5
context = fork.FORK if sys.argv[2] == "checked" else multiprocessing.get_context("fork")
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
from seresnext.process import fork
fork.PATIENCE = 0.5
source = SyntheticImages(SyntheticReader(8, 2), 16, 3, 0)
with open_batches(source, evaluation_keys(8, 2, 0, 1), workers=2, timeout=20, pin_memory=False) as batches:
    print(sum(len(batch.labels) for batch in batches), "images")
"""


@pytest.fixture
def answer(tmp_path):
    """`answer(script, word)`: the output of a process whose first fork hangs."""

    def answer(script: str, word: str = "") -> str:
        command = [sys.executable, "-c", HANGS_ONCE + script, tmp_path / "happened", word]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "happened").exists()
        return result.stdout.strip()

    return answer


@pytest.mark.parametrize(("kind", "end"), [("checked", "begun"), ("plain", "hangs")])
def test_a_fork_that_hangs_at_once_is_replaced(answer, kind, end):
    """Multiprocessing's own context is the control."""
    assert answer(ANSWER, kind) == end


def test_a_loader_worker_that_hangs_at_once_is_replaced(answer):
    assert answer(BATCHES) == "8 images"


def test_the_last_attempt_takes_its_time(monkeypatch):
    """Each attempt is slow here, and the last one still works."""

    class Slow(fork.ForkProcess):
        def _bootstrap(self, parent_sentinel: int | None = None) -> int:
            time.sleep(0.5)
            return super()._bootstrap(parent_sentinel)

    monkeypatch.setattr(fork, "PATIENCE", 0.05)
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
    assert time.monotonic() - started < fork.PATIENCE
