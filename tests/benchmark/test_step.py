"""The benchmark of the step, made small: its figures are measured, in the fields promised, and add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"
SMALL = ["--model", "seresnext26", "--size", "32", "--micro", "2", "--steps", "1", "--rounds", "2"]
PARTS = ("forward", "backward", "gradient_norm", "optimizer", "overhead")


@pytest.fixture
def bench(run_command, tmp_path: Path):
    """`bench(*words)` -> its figures and what it printed."""

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
