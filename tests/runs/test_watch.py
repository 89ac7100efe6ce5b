"""Reports of a run during training: the slowest rank, anomalies, and traces."""

import json
import socket
from pathlib import Path

import launcher
import pytest
from run_folders import differences, digest, losses

pytestmark = pytest.mark.runs
PROGRAM = str(Path(__file__).parents[1] / "disturbed.py")
LOGGED = ("--set", "logging.every=4st", "--set", "data.workers=0", "--set", "evaluation.every=8st")


def all_events(run, kind):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


@pytest.mark.parametrize("part", [pytest.param("data", marks=pytest.mark.full), "computing"])
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


@pytest.mark.full
def test_wrong_labels_and_a_slow_loader_are_events(train_arguments, tmp_path):
    """Step 141 has wrong labels, and each batch from step 151 on comes 0.2 s late. The first 140 steps are normal."""
    run, settings = tmp_path / "run", ("length=160st", "logging.every=10st", "evaluation.every=160st", "data.workers=0")
    settings = (*settings, "optimizer.lr=0.02", "model.drop_rate=0", "schedule.warmup=10st", "checkpoint.every=160st")
    words = [word for setting in settings for word in ("--set", setting)]
    launcher.complete(1, [PROGRAM, "spoilt", "0", "0.2", *train_arguments(run, *words)[1:]])
    events = all_events(run, "anomaly")
    assert [event for event in events if event["kind"].endswith(("spike", "jump")) and event["step"] < 141] == []
    last = {event["kind"]: event for event in events}
    assert (last["loss_spike"]["step"], len(last["loss_spike"]["samples"])) == (141, 8)
    assert last["throughput_drop"]["step"] == last["data_starvation"]["step"] == 160
    assert last["data_starvation"]["value"] > 0.6


@pytest.mark.full
def test_a_fork_differs_from_the_run_by_the_change_alone(train, tmp_path):
    """The first step after the fork has the same weights, images, crops and dropout, so the same loss."""
    whole = train(tmp_path / "whole")
    fork = str(whole / "checkpoints" / "step-00000004.safetensors")
    same = train(tmp_path / "same", "--resume", fork)
    assert differences(whole, same) == []
    changed = train(
        tmp_path / "changed", "--resume", fork, "--set", "optimizer.lr=0.004", "--allow-changed", "optimizer"
    )
    assert differences(whole, changed)
    assert losses(changed)[0] == losses(whole)[4]
    assert losses(changed)[3] != losses(whole)[7]
    seeded = train(tmp_path / "seeded", "--resume", fork, "--set", "runtime.seed=1", "--allow-changed", "runtime")
    assert losses(seeded)[0] != losses(whole)[4]


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 2])
def test_a_traced_run_has_the_same_bits_and_a_trace_for_each_rank(narrow_arguments, whole_digest, tmp_path, world):
    run = tmp_path / "run"
    launcher.complete(world, narrow_arguments(run, "--profile", "2"))
    assert digest(run) == whole_digest(world)
    traces = sorted((run / "profile").iterdir())
    assert [trace.name for trace in traces] == [f"steps-6-7-rank-{rank}.pt.trace.json" for rank in range(world)]
    for trace in traces:
        names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
        assert [names.count(f"step {number}") for number in range(1, 9)] == [0, 0, 0, 0, 0, 1, 1, 0]
        for part in ("data", "forward and backward"):
            assert names.count(part) == 2 * 2 // world
        assert names.count("optimizer") == 2
    speeds = {event["step"]: event["images_per_second"] for event in all_events(run, "train")}
    assert [step for step, speed in speeds.items() if speed is None] == [5, 6, 7]
