"""Events of a run in all sinks and on the console, silent ranks, and the picture of the first batch."""

import io
import json
import math
from contextlib import contextmanager
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.metrics import logger
from seresnext.metrics.console import Console
from seresnext.metrics.logger import SINKS, RunLogger, draw_batch
from seresnext.metrics.status import read_status, write_status
from seresnext.recipe.load import load_recipe, to_values

RECIPE = load_recipe("digits").recipe
FIRST, SECOND = World(), World(rank=1, size=2)


def event(step, kind="train", **fields):
    return {"event": kind, "step": step, "epoch": step / 10, **fields}


@pytest.fixture
def stream():
    return io.StringIO()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def board_of(folder):
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


def scalars(folder, tag):
    return [(found.step, found.value) for found in board_of(folder).Scalars(tag)]


@pytest.fixture
def opened(tmp_path, stream):
    """`opened(step, evaluated, logged)`: a logger that prints to the stream, in a block."""

    @contextmanager
    def opened(*start, num_classes=10, best_by="top1"):
        changes = [f"model.num_classes={num_classes}", f"evaluation.best_by={best_by}"]
        recipe = load_recipe("digits", changes).recipe
        logger = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST, recipe, list("0123456789"))
        logger.open(*start or (0, 0))
        yield logger
        logger.close()

    return opened


def test_an_event_reaches_all_sinks_and_the_console(tmp_path, stream, opened):
    write_status(tmp_path, FIRST, "running", 0, None)
    with opened() as logger:
        logger.write(event(10, loss=0.5, lr=0.25), seconds_left=75)
        logger.write(event(20, "validate", loss=0.75, top1=62.5, weights="ema"))
        logger.write(event(20, "skipped", reason="the loss is nan"), text="warning: skipped")
    assert lines(tmp_path) == [
        {"event": "train", "step": 10, "epoch": 1.0, "loss": 0.5, "lr": 0.25},
        {"event": "validate", "step": 20, "epoch": 2.0, "loss": 0.75, "top1": 62.5, "weights": "ema"},
        {"event": "skipped", "step": 20, "epoch": 2.0, "reason": "the loss is nan"},
    ]
    assert scalars(tmp_path, "train/loss") == [(10, 0.5)]
    assert scalars(tmp_path, "validate_ema/top1") == [(20, 62.5)]
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == ("running", 10)
    train, validate, skipped = stream.getvalue().splitlines()
    assert train.startswith("train step 10 (epoch 1.00): loss 0.5000")
    assert train.endswith("eta 0:01:15")
    assert validate.startswith("validate (ema) step 20 (epoch 2.00): ")
    assert "top-1 62.50 %" in validate
    assert skipped == "warning: skipped"
    assert (tmp_path / "log.txt").read_text().count("step") == 2


def test_a_new_sink_is_one_row_of_the_table(tmp_path, stream, monkeypatch):
    train, skipped = event(8, loss=0.5), event(8, "skipped", reason="nan")
    opens = Mock()
    monkeypatch.setitem(SINKS, "mlflow", opens)
    recipe = load_recipe("digits", ["logging.sinks=[mlflow, mlflow]"]).recipe
    for world in (SECOND, FIRST):
        assert not opens.called  # Other ranks are silent.
        assert stream.getvalue() == ""
        logger = RunLogger(tmp_path, Console(world.is_first, None, stream), world, recipe)
        logger.open(7, 5, 6)
        logger.write(train, seconds_left=75)
        logger.write(skipped, text="warning: skipped")
        assert call.close() not in opens.return_value.mock_calls  # The status has the end of the run first.
        logger.close()
    (start,) = opens.call_args.args
    assert (start.folder, start.step, start.evaluated, start.logged) == (tmp_path, 7, 5, 6)
    assert start.recipe == to_values(recipe)
    assert opens.return_value.mock_calls == [call.write(train), call.write(skipped), call.close()]
    assert not (tmp_path / "tensorboard").exists()
    start.report("warning: the tracker is offline")
    assert stream.getvalue().endswith("warning: the tracker is offline\n")


@pytest.mark.parametrize(("num_classes", "printed"), [(2, False), (5, False), (6, True)])
def test_top5_of_five_classes_is_not_printed(tmp_path, stream, opened, num_classes, printed):
    with opened(num_classes=num_classes) as logger:
        logger.write(event(10, "validate", loss=0.75, top1=62.5, top5=100.0, weights="model"))
    assert ("top-5" in stream.getvalue()) is printed
    assert ("top-5" in (tmp_path / "log.txt").read_text()) is printed
    assert lines(tmp_path)[0]["top5"] == 100.0
    assert ("validate/top5" in board_of(tmp_path).Tags()["scalars"]) is printed


@pytest.mark.parametrize("best_by", ["top1", "macro_f1"])
def test_macro_f1_is_printed_if_it_chooses_the_best_and_the_last_validation_has_a_table(
    tmp_path, stream, opened, best_by
):
    rows = [{"class": "cat", "support": 12, "recall": 90.0, "precision": 75.0, "f1": 81.8}]
    with opened(best_by=best_by) as logger:
        logger.write(event(10, "validate", loss=0.75, top1=62.5, macro_f1=40.0, weights="model"))
        assert "cat" not in stream.getvalue()
        logger.write(event(20, "validate", loss=0.75, top1=62.5, macro_f1=40.0, weights="model", per_class=rows))
    assert stream.getvalue().count("macro F1 40.00 %") == (2 if best_by == "macro_f1" else 0)
    assert "cat" in stream.getvalue()
    assert lines(tmp_path)[1]["per_class"] == rows
    assert scalars(tmp_path, "validate/macro_f1") == [(10, 40.0), (20, 40.0)]


def test_the_first_batch_is_drawn_as_the_step_mixes_it(tmp_path, opened):
    """The batches stay the same."""
    batches = [DeviceBatch(torch.zeros(4, 3, 8, 8), torch.arange(4), number, 0, 0.0) for number in range(2)]
    mixed = Mock(return_value=(torch.ones(4, 3, 8, 8), torch.eye(10)[:4]))
    with opened() as logger:
        assert list(map(id, logger.draw_first(iter(batches), mixed))) == list(map(id, batches))
    assert (tmp_path / "first_batch.png").exists()
    tags = board_of(tmp_path).Tags()
    assert tags["images"] == ["train/first_batch"]
    assert "recipe/text_summary" in tags["tensors"]
    mixed.assert_called_once_with(batches[0].images, batches[0].labels, step=0, replica=0)
    assert lines(tmp_path) == [{"event": "picture", "step": 0, "epoch": 0.0, "file": "first_batch.png"}]


def test_a_picture_that_cannot_be_written_is_one_warning(tmp_path, stream, opened):
    (tmp_path / "first_batch.png").mkdir()
    batch = DeviceBatch(torch.zeros(4, 3, 8, 8), torch.arange(4), 0, 0, 0.0)
    with opened() as logger:
        (same,) = logger.draw_first(iter([batch]), None)
    assert same is batch
    assert stream.getvalue().count("warning: ") == 1
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2.0])
def test_a_validation_loss_that_is_not_finite_is_a_warning(tmp_path, stream, opened, loss):
    with opened() as logger:
        logger.write(event(10, "train", loss=math.nan))
        logger.write(event(10, "validate", loss=loss, top1=0.0, weights="ema"))
    warnings = [line for line in stream.getvalue().splitlines() if line.startswith("warning")]
    assert len(warnings) == (not math.isfinite(loss))
    assert all(f"step 10 is {loss} (ema weights)" in line for line in warnings)
    assert lines(tmp_path)[1]["loss"] == (loss if math.isfinite(loss) else None)


def test_an_event_after_the_end_of_the_bar_is_a_line(tmp_path, monkeypatch):
    """A dry run has no folder: its logger only prints."""
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    stream.isatty = lambda: True
    logger = RunLogger(None, Console(True, stream=stream), FIRST, RECIPE)
    logger.open(0, 0)
    with logger.console.bar("train", 10) as logger.bar:
        logger.write(event(1, loss=2.0))
    logger.write(event(2, loss=1.0))
    assert "loss 2.0000" not in stream.getvalue()  # The bar shows the text from the next redraw on.
    assert "loss 1.0000" in stream.getvalue()
    assert list(tmp_path.iterdir()) == []


MEAN, STD = (0.5, 0.25, 0.75), (0.5, 0.25, 0.125)


def normalised(images):
    """Normalise uint8 images N H W C as the device does."""
    mean, std = (np.array(values) for values in (MEAN, STD))
    return torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.fixture
def texts(monkeypatch):
    texts = []
    monkeypatch.setattr(logger.ImageDraw.ImageDraw, "text", lambda pen, place, text, *rest: texts.append(text))
    return texts


@pytest.mark.parametrize("count", [1, 10, 40])
def test_each_image_has_its_pixels_and_its_label(tmp_path, texts, count):
    images, names = np.random.default_rng(0).integers(0, 256, (count, 160, 160, 3)), ["cat", "dog\x1b[31m", "x" * 99]
    draw_batch(normalised(images), torch.arange(count) % 3, names, MEAN, STD, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    shown = min(count, 32)
    for number in range(shown):
        top, left = 8 + number // 8 * 204, 8 + number % 8 * 168
        assert np.array_equal(pixels[top : top + 160, left : left + 160], images[number])
    assert len(texts) == shown
    assert texts[:3] == ["cat", r"dog\x1b[31m", "x" * 23 + "..."][:shown]


def test_a_mixed_image_has_the_shares_of_both_labels(tmp_path, texts):
    shares = torch.tensor([[0.3, 0.0, 0.7], [0.0, 1.0, 0.0]])
    draw_batch(torch.zeros(2, 1, 8, 8), shares, ["cat", "dog", "fox"], (0.5,), (0.5,), tmp_path / "a.png")
    assert texts == ["70 % fox\n30 % cat", "100 % dog"]
