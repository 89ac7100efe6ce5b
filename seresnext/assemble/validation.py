"""A validation: a checkpoint of a run, or a published file of weights, measured on a split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from seresnext.assemble import parts
from seresnext.checkpoint import store
from seresnext.checkpoint.contents import Facts, part
from seresnext.data.loader import evaluation_keys
from seresnext.data.readers import Reader, open_reader, recognise_form
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, Failure, RecipeError, UsageError
from seresnext.evaluation import Evaluation, evaluate
from seresnext.metrics.console import Console
from seresnext.models import Preprocessing, create_model, load_weights, published_preprocessing, recognise
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS, make_deterministic, resolve_precision
from seresnext.weights import read_weights
from seresnext.weights.names import shown_path

# What a published file of weights does not say, and where 2 cores and 24 GiB or a GPU all do well.
_PUBLISHED_BATCH = 64
_PUBLISHED_WORKERS = 4


@dataclass(frozen=True)
class Subject:
    """What is measured: tensors, the recipe that says how, and what else the file tells.

    `classes` is None where the file does not name them.
    """

    tensors: dict[str, Tensor]
    recipe: Recipe
    weights: str
    classes: list[str] | None


def validate(
    checkpoint: Path, world: World, data: str | None, split: str | None, weights: str | None, json_file: Path | None
) -> None:
    """Measure a file of weights and print top-1, top-5, loss and images per second.

    Everything not given comes from the file. Raises CheckpointError for a file that is refused, DataError for a split
    that cannot be used, UsageError for weights that the file does not have.
    """
    subject = world.together(lambda: read_subject(checkpoint, weights, world))
    recipe = subject.recipe
    root, split = data or recipe.data.root, split or recipe.data.val_split
    console = Console(enabled=world.is_first)
    reader = world.together(lambda: _open(recipe, root, split, subject))
    section = recipe.model
    model = create_model(section.name, section.num_classes, section.in_channels)
    precision = PRECISIONS[recipe.runtime.precision]
    # Before its weights come: weights in fp64 would be rounded on their way through a model in fp32.
    precision.place(model, world.device, recipe.runtime.channels_last)
    for note in world.together(lambda: load_weights(model, subject.tensors, shown_path(checkpoint))):
        console.line(note)
    make_deterministic(recipe.runtime.deterministic)
    size = recipe.evaluation.batch_size or recipe.batch.micro_size
    num_batches = math.ceil(len(reader) / size)
    keys = evaluation_keys(len(reader), size, world.rank, world.size)
    console.line(f"{section.name} ({subject.weights} weights) from {checkpoint}")
    console.line(
        f"{len(reader):,} images of {split if data is None else f'{root}/{split}'}, {recipe.runtime.precision}"
    )
    source = parts.validation_source(recipe, reader)
    with (
        parts.device_batches(source, reader, keys, recipe, precision, world) as batches,
        console.bar("validate", math.ceil(num_batches / world.size)) as bar,
    ):
        result = evaluate(
            model, batches, num_batches=num_batches, world=world, precision=precision, on_round=bar.advance
        )
    assert result is not None, "nothing asks a validation to stop"
    _tell(result, console)
    if json_file and world.is_first:
        _write(json_file, _report(result, subject, checkpoint))


def read_subject(path: Path, weights: str | None, world: World) -> Subject:
    """Read a checkpoint of a run, or bare published weights. Raises CheckpointError or UsageError."""
    tensors, metadata = read_weights(path)
    if "format" in metadata:
        store.verify(path)
        return _of_checkpoint(path, tensors, metadata, weights, world)
    if weights == "ema":
        raise UsageError(f"--weights ema: {shown_path(path)} is a bare file of weights, with no average beside them")
    try:
        name, num_classes, in_channels = recognise(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{shown_path(path)}: {error}") from None
    preprocessing = published_preprocessing(name)
    values = {
        "model": {"name": name, "num_classes": num_classes, "in_channels": in_channels},
        "data": {
            "image_size": preprocessing.image_size,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "workers": _PUBLISHED_WORKERS,
        },
        "evaluation": {"crop_pct": preprocessing.crop_pct, "interpolation": preprocessing.interpolation},
        "batch": {"global_size": _PUBLISHED_BATCH, "micro_size": _PUBLISHED_BATCH},
        "runtime": {"precision": resolve_precision("auto", world.device)},
    }
    return Subject(tensors, recipe_from_values(values, "published weights"), "model", None)


def _of_checkpoint(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], weights: str | None, world: World
) -> Subject:
    source = shown_path(path)
    facts = Facts.from_metadata(metadata, source)
    values = facts.recipe
    try:
        recipe = recipe_from_values(values, source)
        # A run on GPUs may be measured on a machine without, and the other way round.
        precision = recipe.runtime.precision
        if precision == "auto" or (world.device.type == "cpu" and precision in ("bf16", "fp16")):
            values = {**values, "runtime": {**values["runtime"], "precision": resolve_precision("auto", world.device)}}
        recipe = recipe_from_values(values, source)
    except RecipeError as error:
        raise CheckpointError(f"{source} has a recipe that cannot be used: {error}") from None
    chosen = weights or recipe.evaluation.weights
    if chosen == "auto":
        chosen = "ema" if recipe.ema else "model"
    found = part(tensors, chosen)
    if not found:
        raise UsageError(f"--weights {chosen}: {source} has no such weights; the run had no average (ema)")
    classes = facts.dataset.get("classes")
    return Subject(found, recipe, chosen, classes if isinstance(classes, list) else None)


def _open(recipe: Recipe, root: str, split: str, subject: Subject) -> Reader:
    if recipe.data.format == "synthetic":
        assert recipe.data.synthetic_images is not None
        return SyntheticReader(recipe.data.synthetic_images, recipe.model.num_classes)
    cache = Path(recipe.data.cache) if recipe.data.cache else None
    reader = open_reader(root, split, recognise_form(root, split, recipe.data.format), cache, recipe.data.cache_size)
    if subject.classes is not None and list(reader.classes) != subject.classes:
        there, here = set(subject.classes), set(reader.classes)
        raise DataError(
            f"{root}/{split} has other classes than the model was trained on ({len(here)} here, {len(there)} there; "
            f"only here: {sorted(here - there)[:5]}, only there: {sorted(there - here)[:5]}), so labels would not mean "
            "the same; give the data it was trained for with --data DIR"
        )
    if len(reader.classes) != recipe.model.num_classes:
        raise DataError(
            f"{root}/{split} has {len(reader.classes)} class folders, the model {recipe.model.num_classes} classes; "
            "give the data it was trained for with --data DIR"
        )
    return reader


def _tell(result: Evaluation, console: Console) -> None:
    if not math.isfinite(result.loss):
        console.line("warning: the output of the model is not finite for some images")
    console.line(
        f"top-1 {result.top1:.3f} %  top-5 {result.top5:.3f} %  loss {result.loss:.4f}  "
        f"({result.num_images:,} images, {result.images_per_second:.1f} images/s)"
    )


def _report(result: Evaluation, subject: Subject, checkpoint: Path) -> dict[str, Any]:
    measured = asdict(result)
    if not math.isfinite(result.loss):
        measured["loss"] = None
    return {
        **measured,
        "model": subject.recipe.model.name,
        "weights": subject.weights,
        "checkpoint": str(checkpoint),
        "preprocessing": asdict(Preprocessing.of_recipe(subject.recipe)),
    }


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise Failure(f"the result cannot be written to {path}: {error.strerror}") from None
