"""The interface of sinks: a new sink needs a row in the table, and no change of the logger."""

import io

from seresnext.distributed import World
from seresnext.metrics.console import Console
from seresnext.metrics.logger import SINKS, RunLogger

TRAIN = {"event": "train", "step": 8, "epoch": 0.8, "loss": 0.5}
SKIPPED = {"event": "skipped", "step": 8, "epoch": 0.8, "reason": "nan"}


class ListSink:
    """A sink that keeps all calls in a list."""

    def __init__(self, start):
        self.calls = [start]

    def write(self, event):
        self.calls.append(event)

    def close(self):
        self.calls.append("closed")


def test_a_new_sink_is_one_row_of_the_table(tmp_path, monkeypatch):
    stream = io.StringIO()
    opened = []
    monkeypatch.setitem(SINKS, "list", lambda start: opened.append(ListSink(start)) or opened[-1])
    for world, count in ((World(rank=1, size=2), 0), (World(), 1)):
        logger = RunLogger(tmp_path, Console(world.is_first, None, stream), world)
        logger.open(7, 5, 6)
        with logger.training(7, 10):
            logger.write(TRAIN, seconds_left=75)
            logger.write(SKIPPED, text="warning: skipped")
        assert len(opened) == count
    start, *calls = opened[0].calls
    assert (start.folder, start.step, start.evaluated, start.logged) == (tmp_path, 7, 5, 6)
    assert calls == [TRAIN, SKIPPED, "closed"]
    start.warn("the tracker is offline")
    assert stream.getvalue().endswith("warning: the tracker is offline\n")
