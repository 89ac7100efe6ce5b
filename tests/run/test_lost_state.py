"""Every item of a checkpoint is needed: without any one of them a run is not gone on with, and with the value that a
fresh run begins with in its place, it does not go on as it would have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seresnext.checkpoint import file_format, store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.errors import Failure
from seresnext.metrics.console import Console
from seresnext.recipe.load import LoadedRecipe
from seresnext.run.assemble import Run
from seresnext.runtime import Precision
from seresnext.training.step import TrainingStep
from seresnext.training.trainer import Progress

# A run leaves its files to the end of its process.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

# The run that is taken apart was saved right after validation, between two lines of metrics, and its last step was the
# second that was skipped. The step after that is skipped, too.
STOPPED, TOTAL, SKIPPED = 5, 8, (1, 4, 5)
SETTINGS = [f"length={TOTAL}st", "evaluation.every=5st", "checkpoint={every: 3st, keep: 9}", "logging.every=3st"]


@pytest.fixture(scope="module")
def go_on(narrow: pytest.MonkeyPatch, train_synthetic: Callable[..., Path]) -> Callable[[Path], Path]:
    """`go_on(output) -> output`: the run, whose losses are no numbers in the steps to be skipped."""
    real = TrainingStep._forward_backward

    def spoilt(self, batch):
        loss = real(self, batch)
        return loss * math.nan if batch.step in SKIPPED else loss

    narrow.setattr(TrainingStep, "_forward_backward", spoilt)
    # That of fp16, which is slow on a CPU.
    narrow.setattr(Precision, "scaler", lambda self, device: torch.amp.GradScaler(device.type, growth_interval=2))
    return lambda output: train_synthetic(output, SETTINGS)


@pytest.fixture(scope="module")
def whole(go_on: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its beginning to its end."""
    return go_on(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def saved(whole: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return store.read(whole / "checkpoints" / f"step-{STOPPED:08}.safetensors")


@pytest.fixture(scope="module")
def fresh(go_on: Callable[[Path], Path], load_synthetic: Callable[[list[str]], LoadedRecipe]) -> dict[str, Tensor]:
    """What the tensors of a run are before its first step."""
    run = Run(load_synthetic(SETTINGS).recipe, None, World(), Console(enabled=False))
    run.warm_up()
    live = run.state()
    return {f"{prefix}.{name}": tensor for prefix, tensors in live.items() for name, tensor in tensors.items()}


@pytest.fixture
def go_on_from(go_on: Callable[[Path], Path], tmp_path: Path) -> Callable[..., Path]:
    """`go_on_from(tensors, metadata) -> output`: from a checkpoint with these contents, whole as a file in any case."""

    def start(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
        folder = tmp_path / "run" / "checkpoints"
        folder.mkdir(parents=True)
        metadata = {name: text for name, text in metadata.items() if name != "digest"}
        file_format.write_synced(folder / f"step-{STOPPED:08}.safetensors", *file_format.header(tensors, metadata))
        return go_on(tmp_path / "run")

    return start


def traces(run: Path) -> list[Any]:
    """What a run leaves from the stop on: its checkpoints, but for when and where they were written, and metrics."""
    found = []
    for step, path in store.steps(run / "checkpoints").items():
        if step > STOPPED:
            tensors, metadata = store.read(path)
            facts = CheckpointMetadata.from_metadata(metadata, "file")
            found.append((step, facts.best, facts.history, facts.progress))
            found += [(name, tensor.numpy().tobytes()) for name, tensor in sorted(tensors.items())]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = {"images_per_second", "data_wait"}
    later = [{k: v for k, v in line.items() if k not in timing} for line in lines if line["step"] > STOPPED]
    early = [line for line in lines if line["step"] == STOPPED and line["event"] == "validate"]
    return [*found, later, len(early)]


def went_on_alike(run: Path, whole: Path) -> bool:
    """The validation at the stop is the whole run's alone: one that went on has no reason to repeat it."""
    *mine, my_validations = traces(run)
    *theirs, _ = traces(whole)
    return mine == theirs and my_validations == 0


def test_with_all_of_it_the_run_goes_on_bit_for_bit(go_on_from, whole, saved):
    assert went_on_alike(go_on_from(*saved), whole)


def test_the_run_has_something_in_every_field(saved):
    """Or the tests below would show nothing."""
    facts = CheckpointMetadata.from_metadata(saved[1], "file")
    at_first = asdict(Progress())
    assert {**facts.progress, "history": facts.history}.keys() == at_first.keys()
    assert [name for name, value in facts.progress.items() if value == at_first[name]] == []
    assert [entry["step"] for entry in facts.history] == [2, 5]
    assert facts.best["step"] == STOPPED


# ------------------------------------------------------------------------------------------------ tensors

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


def test_every_tensor_is_of_one_kind(saved):
    names = [name for kind in TENSORS for name in chosen(saved[0], kind)]
    assert sorted(names) == sorted(saved[0])


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_missing_are_refused(go_on_from, saved, kind):
    """Each kind, and of each one alone is enough."""
    tensors, metadata = saved
    name = chosen(tensors, kind)[-1]
    with pytest.raises(Failure, match="missing from the file") as refusal:
        go_on_from({key: tensor for key, tensor in tensors.items() if key != name}, metadata)
    assert name in str(refusal.value)
    assert refusal.value.exit_code == 4


# Of each part of a run one, the others on request; and the average has the model's counts, which every update copies.
EVERY_DAY = ["weights", "BatchNorm variances", "averaged weights", "momentum of weights", "loss scale"]
ON_REQUEST = sorted(TENSORS.keys() - {*EVERY_DAY, "averaged BatchNorm counts"})


@pytest.mark.parametrize("kind", [*EVERY_DAY, *(pytest.param(kind, marks=pytest.mark.full) for kind in ON_REQUEST)])
def test_tensors_of_a_fresh_run_in_their_place_are_seen(go_on_from, whole, saved, fresh, kind):
    tensors, metadata = saved
    replaced = {**tensors, **{name: fresh[name] for name in chosen(tensors, kind)}}
    assert any(not torch.equal(replaced[name], tensors[name]) for name in tensors)
    assert not went_on_alike(go_on_from(replaced, metadata), whole)


# ------------------------------------------------------------------------------------------------ facts

METADATA = ["format", "step", "recipe", "recipe_hash", "best", "history", "dataset", "environment", "progress"]
FIELDS = sorted(asdict(Progress()).keys() - {"history"})


def test_every_text_is_named_here(saved):
    assert saved[1].keys() == {*METADATA, "digest"}


@pytest.mark.parametrize("name", METADATA)
def test_texts_that_are_missing_are_refused(go_on_from, saved, name):
    tensors, metadata = saved
    with pytest.raises(Failure) as refusal:
        go_on_from(tensors, {key: text for key, text in metadata.items() if key != name})
    assert refusal.value.exit_code == 4


def with_progress(metadata: dict[str, str], progress: dict[str, Any]) -> dict[str, str]:
    return {**metadata, "progress": json.dumps(progress)}


@pytest.mark.parametrize("name", FIELDS)
def test_progress_that_is_missing_is_refused(go_on_from, saved, name):
    tensors, metadata = saved
    progress = json.loads(metadata["progress"])
    del progress[name]
    with pytest.raises(Failure, match=name) as refusal:
        go_on_from(tensors, with_progress(metadata, progress))
    assert refusal.value.exit_code == 4


@pytest.mark.parametrize("name", [*FIELDS, "history"])
def test_progress_of_a_fresh_run_in_its_place_is_seen(go_on_from, whole, saved, name):
    tensors, metadata = saved
    at_first = asdict(Progress())[name]
    if name == "history":
        metadata = {**metadata, "history": json.dumps(at_first)}
    else:
        metadata = with_progress(metadata, {**json.loads(metadata["progress"]), name: at_first})
    start = partial(go_on_from, tensors, metadata)
    if name in ("step", "best"):  # They stand in the file twice.
        with pytest.raises(Failure):
            start()
    else:
        assert not went_on_alike(start(), whole)
