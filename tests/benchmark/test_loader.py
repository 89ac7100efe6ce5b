"""The benchmark of the loader with a small data set: figures of our loader and of a peer are in the promised fields."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


@pytest.mark.full
def test_figures_are_measured_and_written(run_command, tiny_image_folder, tmp_path: Path):
    root, file = tiny_image_folder(), tmp_path / "figures" / "loader.json"
    words = ["--data", root, "--batch", "4", "--epochs", "2", "--peer", "torchvision", "--breakdown", "--json", file]
    result = run_command([sys.executable, SCRIPT, "loader", *words])
    assert result.returncode == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["part"] == "loader"
    assert figures["images"] == 24
    assert len(figures["epochs"]) == len(figures["peer"]["torchvision"]["epochs"]) == 2
    assert min(figures["epochs"]) <= figures["images_per_second"] <= max(figures["epochs"])
    assert figures["ratio"]["torchvision"] > 0
    breakdown = figures["breakdown"]
    parts = [breakdown[name] for name in ("read", "header", "decode", "resize", "collate")]
    assert all(part >= 0 for part in parts)
    assert abs(sum(parts) - breakdown["total"]) < 1
    assert 0 < breakdown["decoder_share"] < 1
    assert figures["machine"]["cores"] >= 1


def test_pillow_can_be_asked_for(run_command, tiny_image_folder, tmp_path: Path):
    words = ["--data", tiny_image_folder(), "--batch", "4", "--epochs", "1", "--decoder", "pillow", "--workers", "1"]
    result = run_command([sys.executable, SCRIPT, "loader", *words, "--json", tmp_path / "figures"])
    assert result.returncode == 0, result.output
    assert json.loads((tmp_path / "figures").read_text())["decoder"] == "pillow"


@pytest.mark.full
def test_mistakes_are_one_message(run_command, tiny_image_folder, tmp_path: Path):
    folder = tiny_image_folder()
    for words, code, text in (
        (["--data", tmp_path / "nowhere"], 3, "nowhere"),
        (["--data", folder, "--workers", "0"], 2, "--workers"),
        (["--data", folder, "--batch", "99"], 3, "--batch"),
        (["--data", folder, "--peer-python", "dali=nowhere"], 2, "--peer-python"),
        (["--data", folder, "--batch", "4", "--peer", "ffcv"], 2, "the peer ffcv does not start"),
    ):
        result = run_command([sys.executable, SCRIPT, "loader", *words])
        assert result.returncode == code, result.output
        assert text in result.stderr
        assert "Traceback" not in result.output
