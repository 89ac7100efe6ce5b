"""Events of a run in all sinks and on the console, resumes, and silent ranks."""

import io
import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.logger import RunLogger
from seresnext.metrics.status import read_status, write_status

FIRST, SECOND = World(), World(rank=1, size=2)


def event(step, kind="train", **fields):
    return {"event": kind, "step": step, "epoch": step / 10, **fields}


@pytest.fixture
def stream():
    return io.StringIO()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder, tag):
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [(found.step, found.value) for found in board.Scalars(tag)]


def test_an_event_reaches_all_sinks_and_the_console(tmp_path, stream):
    logger = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST)
    logger.open(0, 0)
    logger.write(event(10, loss=0.5, lr=0.25), seconds_left=75)
    logger.write(event(10, "validate", loss=0.75, top1=62.5, weights="ema"))
    logger.close()
    assert lines(tmp_path) == [
        {"event": "train", "step": 10, "epoch": 1.0, "loss": 0.5, "lr": 0.25},
        {"event": "validate", "step": 10, "epoch": 1.0, "loss": 0.75, "top1": 62.5, "weights": "ema"},
    ]
    assert scalars(tmp_path, "train/loss") == [(10, 0.5)]
    assert scalars(tmp_path, "validate_ema/top1") == [(10, 62.5)]
    train, validate = stream.getvalue().splitlines()
    assert train.startswith("train step 10 (epoch 1.00): loss 0.5000")
    assert train.endswith("eta 1:15")
    assert validate.startswith("validate (ema) step 10 (epoch 1.00): ")
    assert "top-1 62.50 %" in validate
    assert (tmp_path / "log.txt").read_text().count("step 10") == 2


def test_the_status_has_the_step_of_the_last_train_event(tmp_path, stream):
    write_status(tmp_path, FIRST, "running", 0, None)
    logger = RunLogger(tmp_path, Console(True, None, stream), FIRST)
    logger.open(0, 0)
    logger.write(event(10, loss=0.5))
    logger.write(event(20, "validate", loss=0.75, weights="model"))
    logger.close()
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == ("running", 10)


def test_a_text_replaces_an_event_on_the_console(tmp_path, stream):
    logger = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST)
    logger.open(0, 0)
    logger.write(event(10, "skipped", reason="the loss is nan"), text="warning: skipped")
    logger.close()
    assert lines(tmp_path) == [{"event": "skipped", "step": 10, "epoch": 1.0, "reason": "the loss is nan"}]
    assert stream.getvalue() == "warning: skipped\n"


def test_resume_removes_later_events(tmp_path, stream):
    """The run completed step 30, and resumes from step 10. Steps 20 and 30 run again."""
    for start, steps in ((0, (10, 20, 30)), (10, (20,))):
        logger = RunLogger(tmp_path, Console(True, stream=stream), FIRST)
        logger.open(start, start)
        for step in steps:
            logger.write(event(step, loss=float(step + start)))
        logger.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 10.0), (20, 30.0)]
    assert scalars(tmp_path, "train/loss") == [(10, 10.0), (20, 30.0)]


def test_new_run_removes_all_events(tmp_path, stream):
    for loss in (1.0, 2.0):
        logger = RunLogger(tmp_path, Console(True, stream=stream), FIRST)
        logger.open(0, 0)
        logger.write(event(5, loss=loss))
        logger.close()
    assert [line["loss"] for line in lines(tmp_path)] == [2.0]


@pytest.mark.parametrize(("num_classes", "printed"), [(2, False), (5, False), (6, True), (None, True)])
def test_top5_of_five_classes_is_not_printed(tmp_path, stream, num_classes, printed):
    logger = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST, num_classes)
    logger.open(0, 0)
    logger.write(event(10, "validate", loss=0.75, top1=62.5, top5=100.0, weights="model"))
    logger.close()
    assert ("top-5" in stream.getvalue()) is printed
    assert ("top-5" in (tmp_path / "log.txt").read_text()) is printed
    assert lines(tmp_path)[0]["top5"] == 100.0
    assert scalars(tmp_path, "validate/top5") == [(10, 100.0)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2.0])
def test_a_validation_loss_that_is_not_finite_is_a_warning(tmp_path, stream, loss):
    logger = RunLogger(tmp_path, Console(True, None, stream), FIRST)
    logger.open(0, 0)
    logger.write(event(10, "train", loss=math.nan))
    logger.write(event(10, "validate", loss=loss, top1=0.0, weights="ema"))
    logger.close()
    warnings = [line for line in stream.getvalue().splitlines() if line.startswith("warning")]
    assert len(warnings) == (not math.isfinite(loss))
    assert all(f"step 10 is {loss} (ema weights)" in line for line in warnings)
    assert lines(tmp_path)[1]["loss"] == (loss if math.isfinite(loss) else None)


def resume_with(folder, content, stream):
    """Write `metrics.jsonl`, open the files for a resume after step 25, and return the warnings."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    logger = RunLogger(folder, Console(True, stream=stream), FIRST)
    logger.open(25, 20, 20)
    logger.close()
    return [line for line in stream.getvalue().splitlines() if "metrics.jsonl" in line and line.startswith("warning")]


def test_lost_lines_are_a_warning(tmp_path):
    whole = [json.dumps(event(step, kind)) for step in (10, 20, 30) for kind in ("train", "validate")]
    text = "\n".join(whole) + "\n"
    assert resume_with(tmp_path, text, io.StringIO()) == []
    assert resume_with(tmp_path, text + text[:20], io.StringIO()) == []  # A killed run leaves a partial line.
    for lost in (None, "", text[:100], text.replace(whole[1], "#" * 30), "[" * 5000 + "\n" + text):
        (warning,) = resume_with(tmp_path, lost, io.StringIO())
        assert "step" in warning
        assert "25" in warning


def test_metrics_that_never_end_are_refused(tmp_path, stream):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        RunLogger(tmp_path, Console(True, stream=stream), FIRST).open(1, 1, 1)


def test_without_a_folder_the_logger_only_prints(tmp_path, stream, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = RunLogger(None, Console(True, stream=stream), FIRST)
    logger.open(0, 0)
    logger.write(event(1, loss=1.0))
    logger.close()
    assert "loss 1.0000" in stream.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_are_silent(tmp_path, stream):
    logger = RunLogger(tmp_path, Console(SECOND.is_first, stream=stream), SECOND)
    logger.open(0, 0)
    with logger.training(0, 10), logger.validation(3) as advance:
        logger.write(event(1, loss=1.0))
        logger.advance()
        advance()
    logger.close()
    assert stream.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bars(Console):
    """A console that records the calls of bars."""

    def __init__(self):
        super().__init__(True, stream=Terminal())
        self.bar_calls = []

    def bar(self, label, total, done=0):
        self.bar_calls.append(("open", label, total, done))
        bar = super().bar(label, total, done)
        advance = bar.advance
        bar.advance = lambda count=1: (self.bar_calls.append(("advance", label)), advance(count))
        return bar


def test_bar_of_the_run_and_inner_bar_of_a_validation():
    console = Bars()
    logger = RunLogger(None, console, FIRST)
    logger.advance()  # There is no bar before the block.
    with logger.training(30, 100):
        logger.advance()
        with logger.validation(7) as advance:
            advance()
        logger.advance()
    logger.advance()
    assert console.bar_calls == [
        ("open", "train", 100, 30),
        ("advance", "train"),
        ("open", "validate", 7, 0),
        ("advance", "validate"),
        ("advance", "train"),
    ]


def test_bars_end_when_training_fails():
    console = Bars()
    logger = RunLogger(None, console, FIRST)
    with pytest.raises(ZeroDivisionError), logger.training(0, 10), logger.validation(3):
        raise ZeroDivisionError
    assert console._bars == []
