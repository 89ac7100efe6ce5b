"""What a run says, where it says it, and who is silent."""

import io
import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.logger import RunLogger

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


def test_an_event_goes_everywhere(tmp_path, stream):
    journal = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST)
    journal.open(0, 0)
    journal.write(event(10, loss=0.5, lr=0.25), seconds_left=75)
    journal.write(event(10, "validate", loss=0.75, top1=62.5, weights="ema"))
    journal.close()
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


def test_an_event_can_have_a_text_of_its_own(tmp_path, stream):
    journal = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST)
    journal.open(0, 0)
    journal.write(event(10, "skipped", reason="the loss is nan"), text="warning: skipped")
    journal.close()
    assert lines(tmp_path) == [{"event": "skipped", "step": 10, "epoch": 1.0, "reason": "the loss is nan"}]
    assert stream.getvalue() == "warning: skipped\n"


def test_going_on_forgets_what_came_after(tmp_path, stream):
    """Steps 20 and 30 were taken, but the run goes on from step 10: they will be taken again."""
    for start, steps in ((0, (10, 20, 30)), (10, (20,))):
        journal = RunLogger(tmp_path, Console(True, stream=stream), FIRST)
        journal.open(start, start)
        for step in steps:
            journal.write(event(step, loss=float(step + start)))
        journal.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 10.0), (20, 30.0)]
    assert scalars(tmp_path, "train/loss") == [(10, 10.0), (20, 30.0)]


def test_a_fresh_start_forgets_everything(tmp_path, stream):
    for loss in (1.0, 2.0):
        journal = RunLogger(tmp_path, Console(True, stream=stream), FIRST)
        journal.open(0, 0)
        journal.write(event(5, loss=loss))
        journal.close()
    assert [line["loss"] for line in lines(tmp_path)] == [2.0]


@pytest.mark.parametrize(("num_classes", "said"), [(2, False), (5, False), (6, True), (None, True)])
def test_top5_of_five_classes_is_not_printed(tmp_path, stream, num_classes, said):
    journal = RunLogger(tmp_path, Console(True, tmp_path / "log.txt", stream), FIRST, num_classes)
    journal.open(0, 0)
    journal.write(event(10, "validate", loss=0.75, top1=62.5, top5=100.0, weights="model"))
    journal.close()
    assert ("top-5" in stream.getvalue()) is said
    assert ("top-5" in (tmp_path / "log.txt").read_text()) is said
    assert lines(tmp_path)[0]["top5"] == 100.0
    assert scalars(tmp_path, "validate/top5") == [(10, 100.0)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2.0])
def test_a_validation_loss_that_is_not_finite_is_a_warning(tmp_path, stream, loss):
    journal = RunLogger(tmp_path, Console(True, None, stream), FIRST)
    journal.open(0, 0)
    journal.write(event(10, "train", loss=math.nan))
    journal.write(event(10, "validate", loss=loss, top1=0.0, weights="ema"))
    journal.close()
    warnings = [line for line in stream.getvalue().splitlines() if line.startswith("warning")]
    assert len(warnings) == (not math.isfinite(loss))
    assert all(f"step 10 is {loss} (ema weights)" in line for line in warnings)
    assert lines(tmp_path)[1]["loss"] == (loss if math.isfinite(loss) else None)


def resume_with(folder, content, stream):
    """Write `metrics.jsonl`, open the files for a resume after step 25, and return the warnings."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    journal = RunLogger(folder, Console(True, stream=stream), FIRST)
    journal.open(25, 20, 20)
    journal.close()
    return [line for line in stream.getvalue().splitlines() if "metrics.jsonl" in line and line.startswith("warning")]


def test_lost_lines_are_a_warning(tmp_path):
    whole = [json.dumps(event(step, kind)) for step in (10, 20, 30) for kind in ("train", "validate")]
    text = "\n".join(whole) + "\n"
    assert resume_with(tmp_path, text, io.StringIO()) == []
    assert resume_with(tmp_path, text + text[:20], io.StringIO()) == []  # A killed run leaves half a line.
    for lost in (None, "", text[:100], text.replace(whole[1], "#" * 30), "[" * 5000 + "\n" + text):
        (warning,) = resume_with(tmp_path, lost, io.StringIO())
        assert "step" in warning
        assert "25" in warning


def test_metrics_that_never_end_are_refused(tmp_path, stream):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        RunLogger(tmp_path, Console(True, stream=stream), FIRST).open(1, 1, 1)


def test_without_a_folder_it_only_speaks(tmp_path, stream, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = RunLogger(None, Console(True, stream=stream), FIRST)
    journal.open(0, 0)
    journal.write(event(1, loss=1.0))
    journal.close()
    assert "loss 1.0000" in stream.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_are_silent(tmp_path, stream):
    journal = RunLogger(tmp_path, Console(SECOND.is_first, stream=stream), SECOND)
    journal.open(0, 0)
    with journal.training(0, 10), journal.validation(3) as advance:
        journal.write(event(1, loss=1.0))
        journal.advance()
        advance()
    journal.close()
    assert stream.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bars(Console):
    """A console that notes what its bars are told."""

    def __init__(self):
        super().__init__(True, stream=Terminal())
        self.told = []

    def bar(self, label, total, done=0):
        self.told.append(("open", label, total, done))
        bar = super().bar(label, total, done)
        advance = bar.advance
        bar.advance = lambda count=1: (self.told.append(("advance", label)), advance(count))
        return bar


def test_a_bar_for_the_run_and_one_within_for_validation():
    console = Bars()
    journal = RunLogger(None, console, FIRST)
    journal.advance()  # Before the block there is no bar to move.
    with journal.training(30, 100):
        journal.advance()
        with journal.validation(7) as advance:
            advance()
        journal.advance()
    journal.advance()
    assert console.told == [
        ("open", "train", 100, 30),
        ("advance", "train"),
        ("open", "validate", 7, 0),
        ("advance", "validate"),
        ("advance", "train"),
    ]


def test_bars_end_when_training_fails():
    console = Bars()
    journal = RunLogger(None, console, FIRST)
    with pytest.raises(ZeroDivisionError), journal.training(0, 10), journal.validation(3):
        raise ZeroDivisionError
    assert console._bars == []
