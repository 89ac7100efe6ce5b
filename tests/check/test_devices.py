"""The verdicts about ranks, memory, steps, all-reduce and the loader, by numbers."""

import time
from unittest.mock import Mock

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
from seresnext.run.dry_run import Spread
from seresnext.run.environment import describe_environment

GIB = 2**30


@pytest.mark.parametrize(
    ("gib", "largest", "verdict", "words"),
    [
        (8.0, 256, "ok", "batch.micro_size: 256"),
        (14.3, 128, "ok", "batch.micro_size: 128"),
        (14.5, 64, "warning", "batch.micro_size: 64"),
        (15.9, 64, "warning", "batch.micro_size: 64"),
        (16.1, 64, "failure", "batch.micro_size: 64"),
        (17.0, None, "failure", "runtime.grad_checkpointing: true"),
        (8.0, 96, "failure", "batch.micro_size: 96"),  # A real step failed.
    ],
)
def test_the_memory_of_a_step_has_a_line_for_the_recipe(gib, largest, verdict, words):
    uses = MemoryUse((Use(64, 1.0, 0), Use(128, 2.0, int(gib * GIB))), 16 * GIB)
    finding = judge_memory(load_recipe("seresnext50").recipe, uses, largest)
    assert finding.verdict == verdict
    measured = f"{gib:.2f} of 16.0 GiB a rank for micro-batches of 128 images"
    assert finding.measured == measured + f"; the largest that fits: `{words}`" * (verdict == "ok")
    assert finding.fix == f"write into the recipe: `{words}`" * (verdict != "ok")


def test_the_memory_of_a_size_that_was_not_measured():
    recipe = load_recipe("seresnext50").recipe
    finding = judge_memory(recipe, MemoryUse((Use(8, 1.0, 0), Use(16, 2.0, GIB)), 16 * GIB), 64)
    assert "predicted from 8 and 16" in finding.measured
    finding = judge_memory(recipe, MemoryUse((), GIB), None)
    assert (finding.verdict, finding.measured) == ("failure", "the smallest step does not fit into 1.0 GiB")


def test_the_rate_of_a_step():
    finding = judge_step(Spread(2.0, 1.0, 4.0), 64, 64, "fp32", is_compiled=False)
    assert finding.measured == "32 (16 to 64) images/s of all ranks, 2 s for 64 images, fp32, eager"
    part = judge_step(Spread(2.0, 1.0, 4.0), 64, 1024, "bf16", is_compiled=True).measured
    assert "64 images of 1,024, bf16, eager; compiled about 1.6 times as fast" in part


@pytest.mark.parametrize(
    ("rate", "wanted", "workers", "cores", "needed"),
    [
        (800, 800, 8, 16, None),
        (800, 801, 8, 16, 9),
        (800, 1400, 8, 14, 14),
        (800, 1400, 16, 8, 17),  # The 16 workers share 8 cores.
        (1000, 100, 0, 16, None),
        (100, 60, 0, 4, 1),
        (100, 500, 0, 4, 5),
    ],
)
def test_a_loader_that_is_too_slow_names_the_workers(rate, wanted, workers, cores, needed):
    finding = judge_loader(Spread(rate, rate, rate), wanted, workers, cores)
    fix = "" if needed is None else f"set data.workers={needed}" if needed <= cores else f"use {needed} processor cores"
    assert (finding.verdict, finding.values["median"]) == ("warning" if needed else "ok", rate)
    assert finding.fix.startswith(fix)
    assert (f"data-bound: {needed} workers a rank needed, {workers} given" in finding.measured) == (needed is not None)


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
    monkeypatch.setattr(devices, "measure_loader", Mock(side_effect=DataError("7.jpg is empty; remove the file")))
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


def test_clocks_are_compared_with_that_of_rank_0():
    world = Mock(gather=Mock(return_value=[(100.0, 0.001), (105.0, 0.002), (99.0, 0.001)]))
    assert measure_clocks(world) == ([0.0, 5.0, -1.0], 0.002)
    ((reading, took),), _ = world.gather.call_args
    assert abs(reading - time.time()) < 60
    assert 0 < took < 60


@pytest.mark.parametrize(
    ("change", "verdict"),
    [({}, "ok"), ({"command": ["x"], "decoder": "y"}, "ok"), ({"python": "2.7.1"}, "warning"),
     ({"cpu": "x"}, "warning"), ({"cuda": "12.1"}, "failure"), ({"git_commit": "abc"}, "failure"),
     ({"packages": {"torch": "1.0"}}, "failure"), ({"packages": {"numpy": "1.0"}}, "warning")],
)  # fmt: skip
def test_versions_of_ranks_that_differ(change, verdict):
    own = describe_environment(World()) | {"git_commit": "0123", "cuda": "13.0"}
    packages = own["packages"] | change.get("packages", {})
    finding = judge_versions([own, own, own | change | {"packages": packages, "host": "elsewhere"}])
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
