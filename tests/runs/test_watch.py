"""What a run reports about itself while it trains: the slowest rank, anomalies, and traces."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import launcher
import pytest
from run_folders import digest

pytestmark = [pytest.mark.runs, pytest.mark.narrow]
PROGRAM = str(Path(__file__).parents[1] / "slow_rank.py")
LOGGED = ("--set", "logging.every=4st", "--set", "data.workers=0", "--set", "evaluation.every=8st")


def all_events(run, kind):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


@pytest.mark.parametrize("part", ["data", "computing"])
def test_a_slow_rank_is_named_with_the_part(train_arguments, tmp_path, part):
    """Rank 1 takes 0.2 s longer for each of two steps a log line, in loading or in computing."""
    run = tmp_path / "run"
    launcher.complete(2, [PROGRAM, part, "1", "0.2", *train_arguments(run, *LOGGED)[1:]])
    events = all_events(run, "slowest_rank")
    assert [event["step"] for event in events] == [4, 8]
    for event in events:
        assert (event["rank"], event["host"], event["part"]) == (1, socket.gethostname(), part)
        assert event["seconds"] - event["others"] == pytest.approx(0.2, abs=0.06)
        assert event["slower"] > 0.1
    does = "waits for images" if part == "data" else "computes"
    line = f"slowest rank up to step 8: rank 1 on {socket.gethostname()} {does} {events[1]['seconds']:.3f} s a step"
    assert line in (run / "log.txt").read_text()


@pytest.mark.full
def test_ranks_of_equal_speed_differ_little(train_arguments, tmp_path):
    """The control. The rank that is slowest by chance is in the log."""
    run = tmp_path / "run"
    launcher.complete(2, [PROGRAM, "none", "1", "0", *train_arguments(run, *LOGGED)[1:]])
    assert all(event["seconds"] - event["others"] < 0.06 for event in all_events(run, "slowest_rank"))
    assert (run / "log.txt").read_text().count("slowest rank up to step") == 2


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_traced_run_has_the_same_bits_and_a_trace_for_each_rank(narrow_arguments, whole_digest, tmp_path, world):
    run = tmp_path / "run"
    launcher.complete(world, narrow_arguments(run, "--profile", "3:5"))
    assert digest(run) == whole_digest(world)
    traces = sorted((run / "profile").iterdir())
    assert [trace.name for trace in traces] == [f"steps-3-5-rank-{rank}.pt.trace.json" for rank in range(world)]
    for trace in traces:
        names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
        assert [names.count(f"step {number}") for number in range(1, 9)] == [0, 0, 1, 1, 1, 0, 0, 0]
        for part in ("data", "forward and backward"):
            assert names.count(part) == 3 * 2 // world
        assert names.count("optimizer") == 3
    speeds = {event["step"]: event["images_per_second"] for event in all_events(run, "train")}
    assert [step for step, speed in speeds.items() if speed is None] == [2, 3, 4, 5]
