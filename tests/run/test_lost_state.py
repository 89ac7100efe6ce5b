"""Every item of a checkpoint is needed. A resume without an item is refused; with the item of a fresh run, the resumed
run differs from the uninterrupted run."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import events, lines
from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.errors import Failure
from seresnext.metrics.console import Console
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.runtime import Precision
from seresnext.training.step import TrainingStep
from seresnext.training.trainer import Progress

# The checkpoint under test was saved right after a validation, between two lines of metrics and inside of an epoch of 3
# steps. The last step before and the first step after the save are skipped.
STOPPED, TOTAL, SKIPPED = 5, 8, (1, 4, 5)
SETTINGS = [
    f"length={TOTAL}st", "evaluation.every=5st", "checkpoint={every: 3st, keep: 9}", "logging.every=3st",
    "data.synthetic_images=24",
]  # fmt: skip


@pytest.fixture(scope="module")
def resume(narrow: pytest.MonkeyPatch, train_synthetic: Callable[..., Path]) -> Callable[[Path], Path]:
    """`resume(output) -> output`: start or resume the run. Losses of the skipped steps are NaN."""
    real = TrainingStep._forward_backward

    def spoilt(self, batch):
        loss = real(self, batch)
        return loss * math.nan if batch.step in SKIPPED else loss

    narrow.setattr(TrainingStep, "_forward_backward", spoilt)
    # The scaler of fp16 with fp32: fp16 is slow on a CPU.
    narrow.setattr(Precision, "scaler", lambda self, device: torch.amp.GradScaler(device.type, growth_interval=2))
    return lambda output: train_synthetic(output, SETTINGS)


@pytest.fixture(scope="module")
def whole(resume: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without an interruption."""
    return resume(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def saved(whole: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return store.read(whole / "checkpoints" / f"step-{STOPPED:08}.safetensors")


@pytest.fixture(scope="module")
def fresh(resume: Callable[[Path], Path], load_synthetic: Callable[[list[str]], Recipe]) -> dict[str, Tensor]:
    """Return the tensors of a run before the first step."""
    run = Run(load_synthetic(SETTINGS), None, World(), Console(enabled=False))
    run.warm_up()
    live = run.state()
    return {f"{prefix}.{name}": tensor for prefix, tensors in live.items() for name, tensor in tensors.items()}


@pytest.fixture
def resume_from(resume: Callable[[Path], Path], tmp_path: Path) -> Callable[..., Path]:
    """`resume_from(tensors, metadata) -> output`: resume from a checkpoint with this content and a right digest."""

    def start(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
        metadata = {name: text for name, text in metadata.items() if name != "digest"}
        store.write(tmp_path / "run" / "checkpoints" / f"step-{STOPPED:08}.safetensors", tensors, metadata)
        return resume(tmp_path / "run")

    return start


def traces(run: Path) -> list[Any]:
    """Return the checkpoints and the metrics of a run after the stop, without times and places."""
    found = []
    for step, path in store.steps(run / "checkpoints").items():
        if step > STOPPED:
            tensors, metadata = store.read(path)
            facts = CheckpointMetadata.from_metadata(metadata, "file")
            found.append((step, facts.best, facts.history, facts.progress))
            found += [(name, tensor.numpy().tobytes()) for name, tensor in sorted(tensors.items())]
    later = [line for line in lines(run) if line["step"] > STOPPED]
    early = [line for line in events(run, "validate") if line["step"] == STOPPED]
    return [*found, later, len(early)]


def is_equal(run: Path, whole: Path) -> bool:
    """Return whether a resumed run equals the whole run, and did not repeat the validation at the stop."""
    *mine, my_validations = traces(run)
    *theirs, _ = traces(whole)
    return mine == theirs and my_validations == 0


@pytest.mark.full
def test_with_every_item_the_resumed_run_is_equal_bit_for_bit(resume_from, whole, saved):
    assert is_equal(resume_from(*saved), whole)


def test_every_item_is_named_here_and_differs_from_a_fresh_run(saved):
    """Without different values the tests below prove nothing."""
    tensors, metadata = saved
    assert sorted(name for kind in TENSORS for name in chosen(tensors, kind)) == sorted(tensors)
    assert metadata.keys() == {*METADATA, "digest"}
    facts = CheckpointMetadata.from_metadata(metadata, "file")
    at_first = asdict(Progress())
    assert {**facts.progress, "history": facts.history}.keys() == at_first.keys()
    assert [name for name, value in facts.progress.items() if value == at_first[name]] == []
    assert [entry["step"] for entry in facts.history] == [2, 5]
    assert facts.best["step"] == STOPPED


TENSORS = {
    "weights": ("model.", ".weight"),
    "biases": ("model.", ".bias"),
    "BatchNorm means": ("model.", "running_mean"),
    "BatchNorm variances": ("model.", "running_var"),
    "BatchNorm counts": ("model.", "num_batches_tracked"),
    "averaged weights": ("ema.", ".weight"),
    "averaged biases": ("ema.", ".bias"),
    "averaged BatchNorm means": ("ema.", "running_mean"),
    "averaged BatchNorm variances": ("ema.", "running_var"),
    "averaged BatchNorm counts": ("ema.", "num_batches_tracked"),
    "momentum of weights": ("optimizer.momentum.", ".weight"),
    "momentum of biases": ("optimizer.momentum.", ".bias"),
    "loss scale": ("scaler.", "scale"),
    "steps at this scale": ("scaler.", "growth_tracker"),
}


def chosen(tensors: dict[str, Tensor], kind: str) -> list[str]:
    start, end = TENSORS[kind]
    return [name for name in tensors if name.startswith(start) and name.endswith(end)]


METADATA = ["format", "step", "recipe", "recipe_hash", "best", "history", "dataset", "environment", "progress"]
FIELDS = sorted(asdict(Progress()).keys() - {"history"})


def with_progress(metadata: dict[str, str], progress: dict[str, Any]) -> dict[str, str]:
    return {**metadata, "progress": json.dumps(progress)}


@pytest.mark.parametrize("item", [*TENSORS, *METADATA, *(f"progress.{name}" for name in FIELDS)])
def test_an_item_that_is_missing_is_refused(resume_from, saved, item):
    """One missing tensor of each kind is enough."""
    tensors, metadata = dict(saved[0]), dict(saved[1])
    name = item.removeprefix("progress.")
    if item in TENSORS:
        name = chosen(tensors, item)[-1]
        del tensors[name]
    elif item in METADATA:
        del metadata[item]
    else:
        progress = json.loads(metadata["progress"])
        del progress[name]
        metadata = with_progress(metadata, progress)
    with pytest.raises(Failure, match=re.escape(name)) as refusal:
        resume_from(tensors, metadata)
    assert refusal.value.exit_code == 4


# The counts of the average equal the counts of the model.
@pytest.mark.full
@pytest.mark.parametrize("kind", sorted(TENSORS.keys() - {"averaged BatchNorm counts"}))
def test_tensors_of_a_fresh_run_change_the_result(resume_from, whole, saved, fresh, kind):
    tensors, metadata = saved
    replaced = {**tensors, **{name: fresh[name] for name in chosen(tensors, kind)}}
    assert any(not torch.equal(replaced[name], tensors[name]) for name in tensors)
    assert not is_equal(resume_from(replaced, metadata), whole)


@pytest.mark.parametrize("name", [*FIELDS, "history"])
@pytest.mark.full
def test_progress_of_a_fresh_run_changes_the_result(resume_from, whole, saved, name):
    tensors, metadata = saved
    at_first = asdict(Progress())[name]
    if name == "history":
        metadata = {**metadata, "history": json.dumps(at_first)}
    else:
        metadata = with_progress(metadata, {**json.loads(metadata["progress"]), name: at_first})
    start = partial(resume_from, tensors, metadata)
    if name in ("step", "best"):  # The file has these values twice.
        with pytest.raises(Failure):
            start()
    else:
        assert not is_equal(start(), whole)
