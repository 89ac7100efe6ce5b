"""Clocks, versions and the all-reduce of ranks."""

from __future__ import annotations

import json

import pytest

from seresnext.check.network import judge_all_reduce, judge_clocks, judge_versions, measure_clocks
from seresnext.distributed import World
from seresnext.run.environment import describe_environment
from seresnext.run.estimate import Spread


@pytest.mark.parametrize(
    ("offset", "uncertainty", "verdict"), [(0.9, 0.0, "ok"), (-1.2, 0.1, "warning"), (1.2, 0.3, "ok")]
)
def test_a_clock_that_is_more_than_a_second_apart_is_a_warning(offset, uncertainty, verdict):
    finding = judge_clocks([0.0, offset, 0.1], uncertainty, ["one", "two", "three"])
    assert finding.verdict == verdict
    assert "rank 1 on two" in finding.measured
    assert ("two" in finding.fix) == (verdict != "ok")


def test_one_clock_is_not_ahead_of_itself():
    offsets, uncertainty = measure_clocks(World())
    assert offsets == [0.0]
    assert 0 <= uncertainty < 1


@pytest.mark.parametrize(
    ("change", "verdict"),
    [({}, "ok"), ({"command": ["x"], "decoder": "y"}, "ok"), ({"python": "2.7.1"}, "warning"),
     ({"cpu": "x"}, "warning"), ({"cuda": "12.1"}, "failure"), ({"git_commit": "abc"}, "failure"),
     ({"packages": {"torch": "1.0"}}, "failure"), ({"packages": {"numpy": "1.0"}}, "warning")],
)  # fmt: skip
def test_versions_of_ranks_that_differ(change, verdict):
    own = describe_environment(World()) | {"git_commit": "0123", "cuda": "13.0"}
    packages = own["packages"] | change.get("packages", {})
    other = own | change | {"packages": packages, "host": "elsewhere"}
    finding = judge_versions([own, own, other])
    assert finding.verdict == verdict
    if verdict != "ok":
        key = next(iter(change.get("packages", change)))
        assert finding.measured.startswith(f"{key}: ")
        assert "for rank 2 on elsewhere" in finding.measured


def test_the_bandwidth_and_the_share_of_a_step():
    whole, latency = Spread(0.1, 0.05, 0.2), Spread(2e-5, 1e-5, 3e-5)
    finding = judge_all_reduce(200_000_000, 4, whole, latency, step_seconds=0.5)
    assert finding.verdict == "ok"
    # nccl-tests: bus bandwidth = bytes / seconds x 2 (n - 1) / n.
    assert "3 (1.5 to 6) GB/s" in finding.measured
    assert "20% of a step" in finding.measured
    assert "latency 20 µs" in finding.measured
    slow = judge_all_reduce(200_000_000, 4, whole, latency, step_seconds=0.3)
    assert slow.verdict == "warning"
    assert "compress_gradients=bf16" in slow.fix


RANKS = """
import json, sys, time
from seresnext.check.network import measure_all_reduce, measure_clocks
from seresnext.distributed import open_world

with open_world("cpu") as world:
    now = time.time
    time.time = lambda: now() + 5.0 * world.rank
    offsets, within = measure_clocks(world)
    whole, latency = measure_all_reduce(4_000_000, world)
    if world.is_first:
        print(json.dumps([offsets, within, whole, latency]))
"""


@pytest.mark.full
def test_a_clock_that_was_set_is_found_and_large_tensors_take_longer(run_world, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(RANKS)
    result = run_world(2, [str(program)], timeout=60)
    assert result.returncode == 0, result.output
    offsets, within, whole, latency = json.loads(result.stdout.splitlines()[-1])
    assert offsets[0] == 0
    assert abs(offsets[1] - 5.0) < within + 0.05
    assert whole[0] > latency[0] > 0
