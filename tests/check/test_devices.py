"""The verdicts about ranks, memory, steps, all-reduce and the loader, by numbers."""

from __future__ import annotations

import json

import pytest

from seresnext.check import devices
from seresnext.check.devices import (
    check_devices,
    judge_all_reduce,
    judge_clocks,
    judge_loader,
    judge_memory,
    judge_step,
    judge_versions,
    measure_clocks,
)
from seresnext.check.steps import MemoryUse, Use
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.recipe.load import load_recipe
from seresnext.run.environment import describe_environment
from seresnext.run.estimate import Spread

GIB = 2**30


def memory(gib, capacity=16.0, largest=None, micro=128):
    uses = (Use(micro // 2, 1.0, 0), Use(micro, 2.0, int(gib * GIB)))
    recipe = load_recipe("seresnext50").recipe
    return judge_memory(recipe, MemoryUse(uses, int(capacity * GIB)), largest)


def test_memory_that_suffices_is_ok_and_names_the_largest_size():
    finding = memory(8.0, largest=256)
    assert (finding.verdict, finding.fix) == ("ok", "")
    assert "8.00 of 16.0 GiB" in finding.measured
    assert "the largest that fits: `batch.micro_size: 256`" in finding.measured
    assert "predicted" not in finding.measured


@pytest.mark.parametrize(("gib", "verdict"), [(14.3, "ok"), (14.5, "warning"), (15.9, "warning"), (16.1, "failure")])
def test_memory_that_is_short_has_a_line_for_the_recipe(gib, verdict):
    finding = memory(gib, largest=128 if verdict == "ok" else 64)
    assert finding.verdict == verdict
    assert finding.fix == ("" if verdict == "ok" else "write into the recipe: `batch.micro_size: 64`")


def test_a_real_step_that_failed_counts_more_than_the_prediction():
    finding = memory(8.0, largest=96)
    assert (finding.verdict, finding.fix) == ("failure", "write into the recipe: `batch.micro_size: 96`")


def test_memory_without_any_size_that_fits():
    assert "grad_checkpointing: true" in memory(17.0).fix
    finding = judge_memory(load_recipe("seresnext50").recipe, MemoryUse((), GIB), None)
    assert (finding.verdict, finding.measured) == ("failure", "the smallest step does not fit into 1.0 GiB")


def test_a_prediction_is_named():
    assert "predicted from 8 and 16" in memory(1.0, micro=16, largest=64).measured


def test_the_rate_of_a_step():
    finding = judge_step(Spread(2.0, 1.0, 4.0), 64, 64, "fp32", is_compiled=False)
    assert finding.measured == "32 (16 to 64) images/s of all ranks, 2 s for 64 images, fp32, eager"
    part = judge_step(Spread(2.0, 1.0, 4.0), 64, 1024, "bf16", is_compiled=True).measured
    assert "64 images of 1,024, bf16, eager; compiled about 1.6 times as fast" in part


@pytest.mark.parametrize(
    ("rate", "wanted", "workers", "cores", "needed"),
    [
        (800, 1400, 8, 16, 14),
        (800, 1400, 8, 14, 14),
        (800, 801, 8, 16, 9),
        (800, 1400, 16, 8, 17),  # The 16 workers share 8 cores.
        (100, 60, 0, 4, 1),
        (100, 500, 0, 4, 5),
    ],
)
def test_a_loader_that_is_too_slow_names_the_workers(rate, wanted, workers, cores, needed):
    finding = judge_loader(Spread(rate, rate, rate), wanted, workers, cores)
    assert finding.verdict == "warning"
    assert f"data-bound: {needed} workers a rank needed, {workers} given" in finding.measured
    assert finding.fix.startswith(f"set data.workers={needed}" if needed <= cores else f"use {needed} processor cores")


@pytest.mark.parametrize(("rate", "wanted", "workers"), [(800, 800, 8), (800, 20, 8), (1000, 100, 0)])
def test_a_loader_that_is_fast_enough_is_ok(rate, wanted, workers):
    finding = judge_loader(Spread(rate, rate, rate), wanted, workers, 16)
    assert (finding.verdict, finding.fix) == ("ok", "")
    assert finding.values["median"] == rate


@pytest.mark.parametrize("decoder", ["Pillow", "nvimgcodec"])
def test_the_decoder_in_use_is_named(monkeypatch, decoder):
    monkeypatch.setattr(devices, "DECODER", decoder)
    finding = judge_loader(Spread(1, 1, 1), 99, 1, 9)
    assert f"by {decoder}" in finding.measured
    assert ("seresnext[fast]" in finding.fix) == (decoder == "Pillow")


def test_the_findings_of_this_machine(small):
    findings, speeds = check_devices(small(), SyntheticReader(100, 3), World())
    assert [finding.name for finding in findings] == ["versions", "memory", "step alone", "loader alone"]
    assert {finding.verdict for finding in findings} <= {"ok", "warning"}
    assert "batch.micro_size: 8" in findings[1].measured  # The whole global batch fits.
    assert speeds
    assert speeds.loader
    assert speeds.checkpoint_bytes > 4 * 20_000


def test_a_part_of_a_step_stands_for_the_whole(small, monkeypatch):
    """A micro-batch has 4 of the 8 images of a step and takes 2 s."""
    monkeypatch.setattr(devices, "_STEP_SECONDS", 18.0)
    monkeypatch.setattr(devices.Steps, "use", lambda steps, micro: Use(micro, float(micro), 1))
    monkeypatch.setattr(devices.Steps, "repeat", lambda *_: Spread(2.0, 1.0, 3.0))
    findings, speeds = check_devices(small(), SyntheticReader(100, 3), World())
    assert "4 images of 8" in findings[2].measured
    assert speeds
    assert speeds.step == (4.0, 2.0, 6.0)
    assert findings[3].values["wanted"] == 2


def test_a_step_that_does_not_fit_and_a_loader_that_fails(small, monkeypatch):
    def fail(*_):
        raise DataError("images/7.jpg is empty; remove the file")

    monkeypatch.setattr(devices, "measure_loader", fail)
    monkeypatch.setattr(devices.Steps, "use", lambda steps, micro: None)
    findings, speeds = check_devices(small(), SyntheticReader(100, 3), World())
    assert speeds is None
    assert [finding.verdict for finding in findings[1:]] == ["failure", "failure"]
    assert "7.jpg is empty" in findings[2].measured


@pytest.mark.gpu
def test_the_largest_size_on_a_gpu_is_one_that_a_real_step_takes():
    import torch

    recipe = load_recipe("seresnext26", ["model.num_classes=10", "batch={global_size: 512, micro_size: 64}"]).recipe
    findings, speeds = check_devices(recipe, SyntheticReader(1000, 10), World(device=torch.device("cuda", 0)))
    assert findings[1].verdict == "ok"
    assert findings[1].values["largest_micro_size"] in (64, 128, 256, 512)
    assert speeds


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
from seresnext.check.devices import measure_all_reduce, measure_clocks
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
