"""`seresnext plot` as a user starts it."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from PIL import Image

from seresnext.errors import DataError
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml
from seresnext.report import plot


@pytest.fixture
def run_folder(tmp_path):
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


def test_curves_become_a_picture(run_folder):
    assert command("plot", run_folder) == 0
    with Image.open(run_folder / "curves.png") as image:
        assert image.width > 800
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    assert all(colour in colours for colour in ([31, 119, 180], [255, 127, 14], [44, 160, 44]))  # of the three curves


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """`drawn(panels)` returns the figure of the panels."""
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)

    def draw(panels):
        plot.draw(panels, "title", tmp_path / "curves.png")
        return figures[-1]

    return draw


def labels(panels):
    return {title: [options.get("label", "") for _, options in lines] for title, lines in panels.items()}


def test_a_run_has_model_and_average_in_each_panel(drawn, run_folder):
    """Each curve has one point an epoch."""
    panels = plot.panels_of([plot.Run("first", plot.read_curves(run_folder / "metrics.jsonl"), 0.1)])
    assert labels(panels) == {
        "loss": [
            "training (label smoothing 0.1) 0.05", "validation, model 0.03", "validation, average (EMA) 0.03",
        ],
        "accuracy, %": [
            "validation, model, top-1 90.00", "validation, average (EMA), top-1 100.00",
            "validation, model, top-5 90.00", "validation, average (EMA), top-5 90.00",
        ],
        "learning rate": [""],
    }  # fmt: skip
    loss, accuracy, rate = drawn(panels).axes
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in accuracy.lines}
    assert curves["validation, model, top-1 90.00"] == ([1, 2, 3, 4], [60, 70, 80, 90])
    assert curves["validation, average (EMA), top-1 100.00"] == ([1, 2, 3, 4], [70, 80, 90, 100])
    assert (len(loss.lines), len(rate.lines)) == (3, 1)
    assert rate.get_legend() is None


def test_there_are_no_empty_panels(drawn, tmp_path):
    """A loss of null is no point."""
    lines = [{"event": "train", "epoch": 1, "loss": None}, {"event": "train", "epoch": 2, "loss": 1}]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = plot.Run("first", plot.read_curves(metrics))
    for panels, title in ((plot.panels_of([run]), "loss"), (plot.panels_of([run, run]), "loss: training")):
        assert list(panels) == [title]
        (axes,) = drawn(panels).axes
        assert list(axes.lines[0].get_xdata()) == [2]


def test_several_runs_have_a_panel_for_the_model_and_one_for_the_average():
    first = {"train.loss": ([1], [3]), "validate.top1": ([1], [50]), "validate_ema.top1": ([1], [60])}
    second = {"train.loss": ([1], [2]), "validate.top1": ([1], [40])}
    runs = [plot.Run("first", first, 0.1), plot.Run("second", second, 0.0)]
    assert labels(plot.panels_of(runs)) == {
        "loss: training": ["first (label smoothing 0.1) 3.00", "second 2.00"],
        "top-1: validation, model": ["first 50.00", "second 40.00"],
        "top-1: validation, average (EMA)": ["first 60.00"],
    }
    options = [options for panel in plot.panels_of(runs).values() for _, options in panel]
    colours = [each["color"] for each in options if "first" in each["label"]]
    assert len(set(colours)) == 1


def test_a_legend_is_beside_its_panel(drawn):
    curve = ([1, 2], [99, 100])
    names = [f"{event}.{field}" for event in ("train", "validate", "validate_ema") for field in ("loss", "top1")]
    runs = [plot.Run(f"a run with a longer name, number {number}", dict.fromkeys(names, curve)) for number in range(3)]
    figure = drawn(plot.panels_of(runs))
    assert len(figure.axes) == 6
    for axes in figure.axes:
        legend, area = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.x0 >= area.x1
        others = [other.get_window_extent() for other in figure.axes if other is not axes]
        assert not any(legend.overlaps(other) for other in others)


def test_runs_are_overlaid_and_a_run_without_lines_is_left_out(tmp_path, monkeypatch, capsys, run_folder):
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run", "empty"):
        Path(name).mkdir(parents=True)
        Path(name, "metrics.jsonl").write_text("")
    for name in ("a/run", "b/run"):
        Path(name, "metrics.jsonl").write_bytes((run_folder / "metrics.jsonl").read_bytes())
    panels = []
    monkeypatch.setattr(plot, "draw", lambda found, title, output: panels.append((found, title, output)))
    assert command("plot", "a/run", "empty", "b/run") == 0
    ((found, title, output),) = panels
    assert (title, output) == ("2 runs", Path("curves.png"))
    assert labels(found)["top-1: validation, model"] == ["a/run 90.00", "b/run 90.00"]
    captured = capsys.readouterr()
    assert captured.out == "curves: curves.png\n"
    assert "empty: nothing has been logged yet" in captured.err
    assert command("plot", "empty") == 2


@pytest.mark.parametrize("place", ["folder", "file/curves.png"])
def test_a_picture_that_cannot_be_written_is_refused(run_folder, capsys, place):
    (run_folder / "folder").mkdir()
    (run_folder / "file").touch()
    before = sorted(run_folder.parent.rglob("*"))
    assert command("plot", run_folder, "--output", run_folder / place) == 2
    assert f"{place} cannot be written" in capsys.readouterr().err
    assert sorted(run_folder.parent.rglob("*")) == before


def test_label_smoothing_and_measure_are_read_from_the_recipe(tmp_path):
    recipe = load_recipe("cifar10", ["loss.label_smoothing=0.15", "evaluation.best_by=macro_f1"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(recipe.recipe)))
    assert plot.read_run("a", tmp_path, {}) == plot.Run("a", {}, 0.15, "macro_f1")
    (tmp_path / "recipe.yaml").write_text("no recipe")
    for folder in (tmp_path, tmp_path / "none"):
        assert plot.read_run("a", folder, {}) == plot.Run("a", {})


def test_the_measure_that_chooses_the_best_has_a_curve():
    curves = {f"validate.{field}": ([1], [value]) for field, value in (("top1", 50), ("macro_f1", 40))}
    runs = [plot.Run("first", curves, best_by="macro_f1"), plot.Run("second", curves)]
    alone = labels(plot.panels_of(runs[:1]))["accuracy, %"]
    assert alone == ["validation, model, top-1 50.00", "validation, model, macro F1 40.00"]
    assert labels(plot.panels_of(runs))["macro F1: validation, model"] == ["first 40.00", "second 40.00"]
    assert "macro F1: validation, model" not in plot.panels_of([runs[1]] * 2)  # The control.


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
    assert command("plot", tmp_path) == 3
    assert "No such file" in capsys.readouterr().err
