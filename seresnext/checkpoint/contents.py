"""The contents of a checkpoint: named tensors and metadata, their snapshot, checks and strict restore.

Learning rate, weight decay, data order and all randomness are functions of the step. The whole state of a run is the
step and the tensors of the model, the optimizer, the EMA and the scaler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, InstanceOf, ValidationError
from torch import Tensor

from seresnext.errors import CheckpointError, RecipeError, listed, printable
from seresnext.recipe import Recipe, recipe_from_values
from seresnext.weights.safetensors_file import FORMAT, check_format

_MOST_LISTED = 50  # lines in one message: a screen
_DEEPEST = 32  # levels of nesting in a value; a recipe has 4
_LARGEST = 1e300  # a number in a value

StateTensors = Mapping[str, Mapping[str, Tensor]]
"""The live tensors of a run, by prefix and by name: `{"model": {"layer0.conv1.weight": ...}, "optimizer": ...}`."""

STATE_PREFIXES = ("model", "ema", "optimizer", "scaler")
"""The keys of `StateTensors`. A checkpoint has no tensor outside these."""

_JSON = ("recipe", "best", "history", "dataset", "environment", "progress")
_Count = Annotated[int, Field(ge=0, lt=10**18)]
_Percentage = Annotated[float, Field(ge=0, le=100)]
_Text = InstanceOf[str]  # A `str` of pydantic is UTF-8, and a name on Linux need not be.


class _Best(BaseModel, strict=True):
    step: _Count
    top1: _Percentage = 0.0
    top5: _Percentage = 0.0
    balanced_accuracy: _Percentage = 0.0
    macro_f1: _Percentage = 0.0
    loss: float = 0.0
    by: Literal["top1", "top5", "balanced_accuracy", "macro_f1", "loss"] = "top1"
    weights: str = ""


class _Skip(BaseModel, strict=True, extra="forbid"):
    step: _Count
    reason: _Text = ""
    samples: list[_Text] = []


class _Split(BaseModel, strict=True):
    num_images: _Count
    fingerprint: str


class _Dataset(_Split):
    classes: list[_Text]
    val: _Split | None = None


class _Written(BaseModel, strict=True):
    """The metadata that runs write. The recipe and the progress have more checks."""

    step: _Count
    recipe: dict[str, Any]
    recipe_hash: Annotated[str, Field(pattern="^[0-9A-Za-z]{0,128}$")]
    best: _Best | None
    history: Annotated[list[_Skip], Field(max_length=10_000)]  # A run keeps the last 1,000 (training/nonfinite.py).
    dataset: _Dataset
    environment: dict[str, Any]
    progress: dict[str, Any]


@dataclass(frozen=True)
class CheckpointMetadata:
    """The metadata of a checkpoint, without format and digest.

    `recipe` is the resolved recipe, `best` the best validation so far, `history` the skipped steps. `dataset` has
    `classes`, `num_images` and `fingerprint` of the training split, and in `val` the number and the fingerprint of the
    validation split (0.1.0 wrote no `val`); `choice` is the choice of photos (data/readers/photos.py), for photos only.
    `progress` has the other values of the training loop. All are plain JSON data; floats are restored bit for bit.
    """

    step: int
    recipe: dict[str, Any]
    recipe_hash: str
    best: dict[str, Any] | None
    history: list[Any]
    dataset: dict[str, Any]
    environment: dict[str, Any]
    progress: dict[str, Any]

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata as strings. Equal metadata gives equal strings."""
        values = asdict(self)
        texts = {"format": FORMAT, "step": str(self.step), "recipe_hash": self.recipe_hash}
        for name in _JSON:
            texts[name] = json.dumps(values[name], sort_keys=True, allow_nan=False)
        return texts

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> CheckpointMetadata:
        """Read the metadata strings of the file `source`. Raise CheckpointError for values that no run writes."""
        check_format(metadata.get("format"), source)
        values: dict[str, Any] = {"recipe_hash": metadata.get("recipe_hash")}
        for name in {"step", *_JSON} & metadata.keys():
            with suppress(ValueError, RecursionError):  # A value that cannot be read counts as missing.
                values[name] = _checked(json.loads(metadata[name]))
        try:
            written = _Written.model_validate(values)
        except ValidationError as error:
            names = sorted({str(each["loc"][0]) for each in error.errors()})
            raise _error(source, f"has missing or impossible metadata: {', '.join(names)}") from None
        if any(part.step > written.step for part in (*written.history, written.best) if part):
            raise _error(source, "has a best validation or a history of a later step")
        return cls(**values)

    def read_recipe(self, source: str) -> Recipe:
        """Return the recipe of the run. Raise CheckpointError for a recipe that this version cannot use."""
        try:
            return recipe_from_values(self.recipe, source)
        except RecipeError as error:
            raise _error(source, f"has a recipe that cannot be used: {error}") from None


def allocate_snapshot(state: StateTensors) -> dict[str, Tensor]:
    """Allocate buffers on the CPU for the snapshots of a run.

    The buffers are filled with zeros, so that the system assigns the memory now and not in the first snapshot. Copies
    from a GPU to pinned memory are asynchronous. The layout is N C H W, also for channels_last.
    """
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).zero_()
        for name, tensor in _flat(state).items()
    }


def take_snapshot(state: StateTensors, buffers: dict[str, Tensor]) -> None:
    """Copy the live tensors into the buffers of `allocate_snapshot`, which training does not change."""
    live = _flat(state)
    assert buffers.keys() == live.keys(), "the buffers belong to another run"
    for name, tensor in live.items():
        buffers[name].copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in live.values()):
        torch.cuda.synchronize()


def restore(tensors: Mapping[str, Tensor], state: StateTensors) -> None:
    """Copy tensors that passed `check_fits` into the live tensors."""
    with torch.no_grad():
        for name, tensor in _flat(state).items():
            tensor.copy_(tensors[name])


def check_fits(tensors: Mapping[str, Tensor], state: StateTensors, source: str) -> None:
    """Raise CheckpointError unless the tensors of the file `source` fit `state`, and a run can use the values.

    List the tensors that are missing, unknown, or of another shape or dtype.
    """
    live = _flat(state)
    problems = [f"{name}: missing from the file" for name in live if name not in tensors]
    problems += [
        f"{printable(name)}: in the file, but this run has no such tensor" for name in tensors if name not in live
    ]
    for name in live.keys() & tensors.keys():
        theirs, ours = tensors[name], live[name]
        if theirs.shape != ours.shape:
            problems.append(f"{name}: shape {tuple(theirs.shape)} in the file, {tuple(ours.shape)} in this run")
        if theirs.dtype != ours.dtype:
            problems.append(f"{name}: {theirs.dtype} in the file, {ours.dtype} in this run")
    if problems:
        heading = f"{source} does not fit this run, {len(problems)} disagreement{'s' * (len(problems) > 1)}:"
        raise CheckpointError("\n  ".join([heading, *listed(sorted(problems), _MOST_LISTED)]))
    check_values(tensors, source)


def check_values(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError if tensors have values that are not finite, or negative variances. List these tensors."""
    bad = [f"{printable(name)}: not finite" for name, tensor in tensors.items() if not tensor.isfinite().all()]
    variances = {name: tensor for name, tensor in tensors.items() if name.endswith("running_var")}
    bad += [f"{printable(name)}: negative variances" for name, tensor in variances.items() if (tensor < 0).any()]
    if bad:
        lines = [f"{source} has values that no run can use:", *listed(sorted(bad), _MOST_LISTED)]
        raise CheckpointError("\n  ".join(lines) + "\nUse an older checkpoint of the run")


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with a prefix such as `model` or `ema`, under names without the prefix."""
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """Return the loss scale and the number of steps since its last change. Empty for a disabled scaler."""
    state = scaler.state_dict()
    if not state:
        return {}
    growth_tracker = torch.tensor(state["_growth_tracker"], dtype=torch.int64)
    return {"scale": torch.tensor(state["scale"], dtype=torch.float64), "growth_tracker": growth_tracker}


def load_scaler_state(scaler: torch.amp.GradScaler, state: Mapping[str, Tensor]) -> None:
    """Restore the scaler from a `scaler_state` that `restore` has filled."""
    if state:
        numbers = {"scale": float(state["scale"]), "_growth_tracker": int(state["growth_tracker"])}
        scaler.load_state_dict({**scaler.state_dict(), **numbers})


def _error(source: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{source} {problem}. Use another checkpoint of the run")


def _flat(state: StateTensors) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for prefix, tensors in state.items() for name, tensor in tensors.items()}


def _checked(value: Any, depth: int = 1) -> Any:
    """Return the value. Raise ValueError for a number that is too large or not finite, and for deep nesting."""
    if depth > _DEEPEST or (isinstance(value, int | float) and not abs(value) <= _LARGEST):
        raise ValueError
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _checked(item, depth + 1)
    return value
