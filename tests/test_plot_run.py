"""`scripts/plot_run.py` as a user starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    entries = []
    for step in range(1, 41):
        entries.append({"event": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "lr": 0.1})
        if step % 10 == 0:
            scores = {"loss": 1 / step, "top1": 50 + step, "top5": 90.0}
            entries.append({"event": "validate", "step": step, "epoch": step / 10, **scores})
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"event": "tra')
    return tmp_path


def test_curves_become_a_picture(run_folder, run_command):
    result = run_command([sys.executable, SCRIPTS / "plot_run.py", run_folder])
    assert result.returncode == 0, result.output
    with Image.open(run_folder / "curves.png") as image:
        assert image.width > 800
        pixels = np.asarray(image.convert("RGB"))
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two: both panels draw both
        rows, columns = np.nonzero((pixels == colour).all(-1))
        assert len(rows) > 100
        assert columns.min() < image.width / 2 < columns.max()


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("{]\n", "metrics.jsonl:1 is not JSON")])
def test_curves_of_nothing_are_explained(tmp_path, run_command, content, message):
    if content:
        (tmp_path / "metrics.jsonl").write_text(content)
    result = run_command([sys.executable, SCRIPTS / "plot_run.py", tmp_path])
    assert result.returncode == 3
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_loss_that_is_not_finite_is_left_out_of_the_curves(tmp_path, run_command):
    lines = [{"event": event, "epoch": 1.0, "loss": None, "top1": 10.0} for event in ("train", "validate")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_command([sys.executable, SCRIPTS / "plot_run.py", tmp_path])
    assert result.returncode == 0, result.output
