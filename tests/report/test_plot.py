"""`seresnext plot` as a user starts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launcher import PYTHON
from PIL import Image

from seresnext import cli
from seresnext.errors import DataError
from seresnext.process.stop_request import StopRequest
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml
from seresnext.report import plot


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    entries = []
    for step in range(1, 41):
        entries.append({"event": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "lr": 0.1})
        if step % 10 == 0:
            for weights, top1 in (("model", 50.0), ("ema", 60.0)):
                scores = {"loss": 1 / step, "top1": top1 + step, "top5": 90.0, "weights": weights}
                entries.append({"event": "validate", "step": step, "epoch": step / 10, **scores})
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"event": "tra')
    return tmp_path


def test_curves_become_a_picture(run_folder, run_command):
    result = run_command([PYTHON, "-m", "seresnext", "plot", run_folder])
    assert result.returncode == 0, result.output
    with Image.open(run_folder / "curves.png") as image:
        assert image.width > 800
        pixels = np.asarray(image.convert("RGB"))
    # The first three colours of matplotlib: training is in the left panel, model and average in both.
    for colour, in_both in (((31, 119, 180), False), ((255, 127, 14), True), ((44, 160, 44), True)):
        rows, columns = np.nonzero((pixels == colour).all(-1))
        assert len(rows) > 100
        assert columns.min() < image.width / 2
        assert (columns.max() > image.width / 2) == in_both


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`drawn(curves, smoothing=0)` returns the figure of the curves."""
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)

    def draw(curves: dict[str, Any], smoothing: float = 0.0) -> Any:
        plot.draw(curves, "title", tmp_path / "curves.png", smoothing)
        return figures[-1]

    return draw


def test_model_and_average_are_two_curves(drawn, run_folder):
    """Each curve has one point an epoch."""
    figure = drawn(plot.read_curves(run_folder / "metrics.jsonl"))
    accuracy = figure.axes[1]
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in accuracy.lines}
    assert curves["top-1 (model) 90.00"] == ([1, 2, 3, 4], [60, 70, 80, 90])
    assert curves["top-1 (ema) 100.00"] == ([1, 2, 3, 4], [70, 80, 90, 100])
    assert len(curves) == 4
    assert [line.get_label() for line in figure.axes[0].lines] == [
        "training", "validation (model) 0.03", "validation (ema) 0.03",
    ]  # fmt: skip


def test_labels_of_a_run_without_an_average_and_before_the_first_validation(drawn, tmp_path):
    """A loss of null is no point."""
    lines = [
        {"event": "train", "epoch": 1, "loss": None}, {"event": "train", "epoch": 2, "loss": 1},
        {"event": "validate", "epoch": 2, "loss": 0.5, "top1": 50},
    ]  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = drawn(plot.read_curves(metrics))
    labels = [line.get_label() for axes in figure.axes for line in axes.lines]
    assert labels == ["training", "validation 0.50", "top-1 50.00"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [2]
    assert list(figure.axes[1].texts) == []
    assert len(drawn({"train.loss": ([1, 2], [2, 1])}).axes[1].texts) == 1


def test_a_legend_covers_no_curve(drawn):
    names = [f"{event}.{field}" for event in ("validate", "validate_ema") for field in ("loss", "top1")]
    figure = drawn({name: ([1, 2], [99, 100]) for name in names})
    for axes in figure.axes:
        legend, area = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y1 < area.y0


def test_the_label_of_the_training_loss_has_label_smoothing(drawn, tmp_path):
    recipe = load_recipe("cifar10", ["loss.label_smoothing=0.15"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(recipe.recipe)))
    smoothing = plot.read_smoothing(tmp_path / "recipe.yaml")
    (line,) = drawn({"train.loss": ([1], [2])}, smoothing).axes[0].lines
    assert "label smoothing 0.15" in line.get_label()
    (tmp_path / "recipe.yaml").write_text("no recipe")
    assert [plot.read_smoothing(tmp_path / name) for name in ("recipe.yaml", "none")] == [0, 0]


LINES = [
    b"[" * 100_000, b"\xff\xfe", b"[1]", b"null", b'{"epoch": 1, "loss": 1}', b'{"event": "train"}',
    b'{"event": "train", "epoch": "x"}', b'{"event": "train", "epoch": 1, "loss": 1' + b"0" * 400 + b"}",
]  # fmt: skip


def test_a_line_that_is_no_event_is_named(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    for line in LINES:
        metrics.write_bytes(b'{"event": "train", "epoch": 1, "loss": 1}\n' + line + b"\n")
        with pytest.raises(DataError, match=r"metrics\.jsonl:2 "):
            plot.read_curves(metrics)
    metrics.unlink()
    metrics.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        plot.read_curves(metrics)


def test_missing_metrics_are_refused(tmp_path, capsys):
    assert cli.main(["plot", str(tmp_path)], StopRequest()) == 3
    assert "No such file" in capsys.readouterr().err
