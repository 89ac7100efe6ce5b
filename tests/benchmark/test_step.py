"""A small benchmark of the step: the promised figures are there and add up."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from seresnext.runtime import make_deterministic

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"
SMALL = ["--model", "seresnext26", "--size", "32", "--micro", "2", "--steps", "1", "--rounds", "2"]
PARTS = ("forward", "backward", "gradient_norm", "optimizer", "overhead")


@pytest.fixture
def bench(run_command, tmp_path: Path):
    """`bench(*words)` -> the figures and the output."""

    def run(*words):
        file = tmp_path / "step.json"
        command = [sys.executable, SCRIPT, "step", *SMALL, *words, "--json", file]
        result = run_command(command, env={"CUDA_VISIBLE_DEVICES": ""})
        assert result.returncode == 0, result.output
        return json.loads(file.read_text()), result.stdout

    return run


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
    figures, printed = bench("--peer", "timm")
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
    assert figures["peak_memory"] > 2**27


@pytest.mark.full
def test_a_run_of_two_processes_beside_two_runs(bench):
    figures, _ = bench("--ranks", "2")
    assert (figures["ranks"], figures["threads"]) == (2, max(1, figures["machine"]["cores"] // 2))
    assert figures["ratio"]["independent"] > 0
    check_parts(figures)


@pytest.mark.full
def test_mistakes_are_one_message(run_command):
    for words, text in (
        (["--steps", "0"], "--steps"),
        (["--ranks", "2", "--peer", "timm"], "--peer is for one process"),
        (["--model", "seresnext27"], "seresnext27"),
    ):
        result = run_command([sys.executable, SCRIPT, "step", *SMALL, *words])
        assert result.returncode == 2, result.output
        assert text in result.stderr
        assert "Traceback" not in result.output


# ------------------------------------------------------------------------------------------------ the table of a GPU


@pytest.fixture
def step(monkeypatch):
    """The module, on a machine that seems to have a GPU of compute capability 8.0 and a compiler."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    module = importlib.import_module("benchmark.step")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return module


@pytest.fixture
def workers(step, monkeypatch):
    """Stand-ins for the workers, with different speeds; the list has the starts and ends in order."""
    seen = []

    class Workers:
        def __init__(self, options, count, together=False):
            self.name = (options.kind, "tf32" if options.tf32 else options.precision, options.compile)
            assert (count, options.tf32 and options.precision) in ((1, False), (1, "fp32"))

        def __enter__(self):
            seen.append(("begin", *self.name))
            return self

        def __exit__(self, *_):
            seen.append(("end", *self.name))

        def round(self, parts=False):
            kind, precision, compiled = self.name
            images = {"fp32": 10, "tf32": 20, "bf16": 40, "fp16": 30}[precision] * (2 if compiled is True else 1)
            images = images / 4 if kind == "timm" else images
            spent = dict.fromkeys(step.PARTS, 0.1 if parts else 0.0)
            return [{"images": images, "seconds": 1.0, "peak_memory": 2**30, "matrix_product": 1e12, **spent}]

    monkeypatch.setattr(step, "Workers", Workers)
    return seen


def table(step, *words):
    parser = argparse.ArgumentParser()
    step.add_arguments(parser)
    return step.run(parser.parse_args([*SMALL, *words]))


def test_on_a_gpu_all_precisions_are_measured_beside_the_peer(step, workers, capsys):
    figures = table(step, "--peer", "timm")
    rows = {(row["precision"], row["compiled"]): row for row in figures["table"]}
    assert list(rows) == [(precision, compiled) for precision in step.TABLE for compiled in (False, True)]
    for (precision, compiled), row in rows.items():
        eager = {"fp32": 10, "tf32": 20, "bf16": 40, "fp16": 30}[precision]
        assert row["images_per_second"] == eager * (1 + compiled)
        assert row["peer"]["timm"]["images_per_second"] == eager / 4
        assert row["ratio"]["timm"] == 4 * (1 + compiled)
        assert row["breakdown"]["forward"] == pytest.approx(100)
        assert row["breakdown"]["overhead_share"] == pytest.approx(0.6)
        assert row["share_of_peak"] == row["images_per_second"] * figures["flops_per_image"] / 1e12
        assert row["peak_memory"] == 2**30
    usual = rows["bf16", True]  # The default of recipes on such a GPU.
    assert {name: figures[name] for name in usual} == usual
    assert figures["gpu"] == "a GPU"
    assert "bf16, compiled:" in capsys.readouterr().out


def test_a_peer_has_one_process_for_the_rows_of_a_precision(step, workers):
    table(step, "--peer", "timm")
    peer, eager, compiled = ("timm", "fp32", "auto"), ("ours", "fp32", False), ("ours", "fp32", True)
    assert workers[:6] == [
        ("begin", *peer), ("begin", *eager), ("end", *eager), ("begin", *compiled), ("end", *compiled), ("end", *peer),
    ]  # fmt: skip
    assert len(workers) == 24


@pytest.mark.parametrize(("compile", "rows"), [("true", [True] * 4), ("false", [False] * 4)])
def test_a_table_heeds_compile(step, workers, compile, rows):
    figures = table(step, "--compile", compile)
    assert [row["compiled"] for row in figures["table"]] == rows
    assert (figures["compiled"], figures["peer"], figures["ratio"]) == (rows[0], {}, {})


def test_without_a_compiler_nothing_is_called_compiled(step, workers, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert [row["compiled"] for row in table(step)["table"]] == [False] * 4
    assert "no C++ compiler found" in capsys.readouterr().out
    assert [row["compiled"] for row in table(step, "--compile", "true")["table"]] == [False] * 4


def test_a_precision_that_is_given_makes_no_table(step, workers):
    figures = table(step, "--precision", "tf32", "--peer", "timm")
    assert "table" not in figures
    assert (figures["precision"], figures["images_per_second"], figures["ratio"]["timm"]) == ("tf32", 20, 4)
    assert {name[2] for name in workers} == {"tf32"}


@pytest.mark.gpu
def test_the_table_of_a_real_gpu(run_command, tmp_path: Path):
    file = tmp_path / "step.json"
    words = ["--micro", "8", "--compile", "false", "--peer", "timm", "--json", file]
    result = run_command([sys.executable, SCRIPT, "step", *SMALL, *words], timeout=600)
    assert result.returncode == 0, result.output
    figures = json.loads(file.read_text())
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
def flags():
    """`flags()`: whether products and convolutions round, and whether kernels are timed. Put back after the test."""
    before = [getattr(module, name) for module, name in FLAGS]
    yield lambda: [getattr(module, name) for module, name in FLAGS]
    for (module, name), value in zip(FLAGS, before, strict=True):
        setattr(module, name, value)


@pytest.mark.parametrize("kind", ["ours", "timm"])
@pytest.mark.parametrize("tf32", [False, True])
def test_ours_and_the_peer_round_alike(step, flags, monkeypatch, kind, tf32):
    """The flags at the first round do not depend on earlier values."""
    worker = importlib.import_module("benchmark.bench_worker")

    class Begun(Exception):
        """The rounds would begin."""

    def begin(*_):
        raise Begun

    for (module, name), value in zip(FLAGS, [not tf32, not tf32, False], strict=True):
        setattr(module, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # A real run sets flags, and leaves open files of a trainer to the end of the process.
    monkeypatch.setattr(worker, "BenchRun", Mock(side_effect=lambda *_: make_deterministic(False) or Mock()))
    monkeypatch.setattr(worker, "RunFolder", Mock())
    monkeypatch.setattr(worker, "Rounds", begin)
    options = worker.Options(
        kind=kind, model="seresnext26", size=32, micro=2, steps=1, threads=1, compile=False, tf32=tf32
    )
    with pytest.raises(Begun):
        {"ours": worker.run_ours, "timm": worker.run_timm}[kind](options, sys.stdout)
    assert flags() == [tf32, tf32, True]
