"""A small benchmark of the step: the promised figures are there and add up."""

import shutil
import sys
from contextlib import ExitStack
from unittest.mock import Mock

import pytest
import torch
from benchmark import bench_worker, step

from seresnext.runtime import make_deterministic

SMALL = ["--model", "seresnext26", "--size", "32", "--micro", "2", "--steps", "1", "--rounds", "2"]
PARTS = ("forward", "backward", "gradient_norm", "optimizer", "overhead")


def check_parts(figures):
    breakdown = figures["breakdown"]
    assert all(breakdown[part] > 0 for part in PARTS)
    assert breakdown["backward"] > breakdown["gradient_norm"]
    whole = sum(breakdown[part] for part in PARTS)
    assert breakdown["overhead_share"] == pytest.approx(breakdown["overhead"] / whole)
    if figures["ranks"] == 1:  # The parts of one of the rounds, and nothing is left out.
        assert any(whole == pytest.approx(1e3 * figures["micro"] / rate) for rate in figures["rounds"])


@pytest.mark.full
def test_beside_a_peer(bench):
    figures, printed = bench("step", *SMALL, "--peer", "timm")
    assert (figures["part"], figures["model"], figures["size"], figures["micro"]) == ("step", "seresnext26", 32, 2)
    assert min(figures["rounds"]) <= figures["images_per_second"] <= max(figures["rounds"])
    peer = figures["peer"]["timm"]
    assert len(figures["rounds"]) == len(peer["rounds"]) == 2
    ratios = [ours / theirs for ours, theirs in zip(figures["rounds"], peer["rounds"], strict=True)]
    assert figures["ratio"]["timm"] == pytest.approx(sum(ratios) / 2)
    check_parts(figures)
    # 6 times the multiply-adds: a forward and a backward pass, which is two products, of two operations each.
    reached = figures["images_per_second"] * figures["flops_per_image"]
    assert figures["share_of_peak"] == pytest.approx(reached / figures["matrix_product_flops"])
    assert f"{figures['share_of_peak']:.0%} of the" in printed
    assert min(figures["peak_memory"], peer["peak_memory"]) > 2**27


@pytest.mark.full
def test_a_run_of_two_processes_beside_two_runs(bench):
    figures, _ = bench("step", *SMALL, "--ranks", "2")
    assert (figures["ranks"], figures["threads"]) == (2, max(1, figures["machine"]["cores"] // 2))
    assert figures["ratio"]["independent"] > 0
    check_parts(figures)


SPEEDS = {"fp32": 10, "tf32": 20, "bf16": 40, "fp16": 30}  # of the stand-ins, eager, in images per second


class StandIn(ExitStack):
    def __init__(self, options, count):
        super().__init__()
        images = SPEEDS[options.precision] * (1 + (options.compile is True)) / (4 if options.kind == "timm" else 1)
        self.answer = {"images": images, "seconds": 1.0, "peak_memory": 2**30, "matrix_product": 1e12}

    def round(self, parts=False):
        return [self.answer | dict.fromkeys(step.PARTS, 0.1 if parts else 0.0)]


def test_on_a_gpu_all_precisions_are_measured_beside_the_peer(measure, monkeypatch, capsys):
    monkeypatch.setattr(step, "Workers", StandIn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    figures = measure(step, *SMALL, "--peer", "timm")
    rows = {(row["precision"], row["compiled"]): row for row in figures["table"]}
    assert list(rows) == [(precision, compiled) for precision in step.TABLE for compiled in (False, True)]
    for (precision, compiled), row in rows.items():
        assert row["images_per_second"] == SPEEDS[precision] * (1 + compiled)
        assert row["peer"]["timm"]["images_per_second"] == SPEEDS[precision] / 4
        assert row["ratio"]["timm"] == 4 * (1 + compiled)
        assert row["breakdown"]["overhead_share"] == pytest.approx(0.6)
        assert row["share_of_peak"] == row["images_per_second"] * figures["flops_per_image"] / 1e12
    usual = rows["bf16", True]  # The default of recipes on such a GPU.
    assert {name: figures[name] for name in usual} == usual
    assert "bf16, compiled:" in capsys.readouterr().out


@pytest.mark.gpu
def test_the_table_of_a_real_gpu(bench):
    figures, _ = bench("step", *SMALL, "--micro", "8", "--compile", "false", "--peer", "timm")
    assert [row["precision"] for row in figures["table"]] == ["fp32", "tf32", "bf16", "fp16"]
    for row in figures["table"]:
        assert row["images_per_second"] > 0
        assert row["ratio"]["timm"] > 0
        assert row["breakdown"]["backward"] > 0
        assert 0 < row["share_of_peak"] < 1
    assert figures["peer"]["timm"]["images_per_second"] > 0


FLAGS = [
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"),
]


@pytest.fixture
def restored_flags():
    before = [getattr(module, name) for module, name in FLAGS]
    yield
    for (module, name), value in zip(FLAGS, before, strict=True):
        setattr(module, name, value)


@pytest.mark.parametrize("kind", ["ours", "timm"])
@pytest.mark.parametrize("tf32", [False, True])
def test_ours_and_the_peer_round_alike(restored_flags, monkeypatch, kind, tf32):
    """The flags at the first round do not depend on earlier values."""
    for (module, name), value in zip(FLAGS, [not tf32, not tf32, False], strict=True):
        setattr(module, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # A real run sets flags, and leaves open files of a trainer to the end of the process.
    monkeypatch.setattr(bench_worker, "BenchRun", Mock(side_effect=lambda *_: make_deterministic(False) or Mock()))
    monkeypatch.setattr(bench_worker, "RunFolder", Mock())
    monkeypatch.setattr(bench_worker, "rounds", Mock(side_effect=InterruptedError))
    precision = "tf32" if tf32 else "fp32"
    options = bench_worker.Options(
        kind=kind, model="seresnext26", size=32, micro=2, steps=1, threads=1, precision=precision, compile=False
    )
    with pytest.raises(InterruptedError):
        {"ours": bench_worker.run_ours, "timm": bench_worker.run_timm}[kind](options, sys.stdout)
    assert [getattr(module, name) for module, name in FLAGS] == [tf32, tf32, True]
