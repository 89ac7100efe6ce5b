"""A validation: a checkpoint of a run, or a published file of weights, measured on a split.

A checkpoint may come from a stranger. Its settings of images and model count. Its settings of the machine do not: the
folder of the index, the server of the images, the number of processes, the memory.
"""

import gc
import math
import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seresnext.data.formats import detect_format
from seresnext.data.loading.loader import evaluation_keys
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.pipeline import check_same_data, device_batches
from seresnext.data.readers import Reader
from seresnext.data.readers.photo_choice import read_class_map, stored_choice
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, UsageError, shown_path
from seresnext.evaluation import Evaluation, evaluate
from seresnext.evaluation.summary import describe_summary, read_real_labels, real_accuracy, summarize
from seresnext.evaluation.table import Table, build_table
from seresnext.files import is_remote
from seresnext.metrics.console import Console, describe
from seresnext.models import LoadedWeights, Preprocessing, create_model, find_weights, open_weights
from seresnext.models.pretrained import fold_batchnorm
from seresnext.recipe import Recipe, recipe_from_values
from seresnext.run.class_selection import ClassSelection, read_class_names, select_classes
from seresnext.run.opening import check_images, open_split
from seresnext.runtime import PRECISIONS, make_deterministic, resolve_precision, tune_malloc

# Settings that a published file of weights lacks. The values suit 2 cores with 24 GiB, and a GPU.
_PUBLISHED_BATCH = 64
_PUBLISHED_WORKERS = 4
# The most pixels of one forward pass: 83 images of 224 x 224 on a CPU, 1,337 images on a GPU.
_MOST_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 26}
# Keys of a recipe that a setting replaces, by section.
_RECIPE_KEYS = {
    "data": {"root": "data", "val_split": "split", "image_size": "image_size", "workers": "workers"},
    "evaluation": {"crop_pct": "crop_pct", "interpolation": "interpolation", "batch_size": "batch_size"},
    "runtime": {"precision": "precision"},
}
# Logits that are kept for the statistics: 4 GiB. ImageNet has 50 million.
_MOST_LOGITS = 1 << 30
# The options of `seresnext validate` that count here. None: as in the file of weights.
_OPTIONS = {"flip": False} | dict.fromkeys((
    "data", "split", "image_size", "workers", "crop_pct", "interpolation", "batch_size", "precision", "weights",
    "real_labels", "class_map", "classes",
))  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """The result of a validation, with the logits of all images, on every rank.

    `selection.names` are the classes of the logits. `summary` has the statistics of `summarize`, on rank 0.
    """

    checkpoint: Path
    loaded: LoadedWeights
    recipe: Recipe
    reader: Reader
    selection: ClassSelection
    result: Evaluation
    summary: dict[str, Any]
    settings: Namespace

    def to_json(self) -> dict[str, Any]:
        """Return the result as in the JSON file. Numbers that are not finite are None."""
        return {
            **{name: value if math.isfinite(value) else None for name, value in self.result.to_dict().items()},
            "model": self.recipe.model.name,
            "weights": self.loaded.weights,
            "checkpoint": str(self.checkpoint),
            "preprocessing": asdict(Preprocessing.of_recipe(self.recipe)),
            "flip": self.settings.flip,
            "num_classes": len(self.selection.names),
            **self.summary,
        }

    def table(self) -> Table:
        """Return the predictions of all images."""
        classes = self.selection.names
        if self.result.logits is None or self.result.labels is None:
            raise DataError(f"{len(self.reader)} images with {len(classes)} classes are too many for a table")
        names = [self.reader.name(index) for index in range(len(self.reader))]
        return build_table(names, self.result.labels, self.result.logits, classes)


def validate(checkpoint: Path, world: World, settings: Namespace) -> Validation:
    """Measure a file of weights, and print top-1, top-5, loss, images per second and a summary.

    `settings` are options of the command; a missing option and None mean: as in the file.

    Raise CheckpointError for a file that is refused, DataError for a wrong split, UsageError for missing weights.
    """
    settings = Namespace(**{**_OPTIONS, **vars(settings)})
    with world.downloading(), world.agreeing():
        checkpoint = find_weights(checkpoint)
        loaded, recipe = read_subject(checkpoint, settings.weights, world)
        if settings.data is None and is_remote(recipe.data.root):
            raise CheckpointError(
                f"{shown_path(checkpoint)} has the images of a server, {recipe.data.root}, and a checkpoint must not "
                f"choose the server; if you trust the server, give --data {recipe.data.root}"
            )
        recipe = _with_settings(recipe, settings)
        split, where = recipe.data.val_split, f"{recipe.data.root}/{recipe.data.val_split}"
        choice = stored_choice(loaded.metadata.dataset, loaded.source) if loaded.metadata else None
        reader = open_split(recipe, split, choice)
        selection = _select(loaded, reader, recipe, settings, where)
        keeps_logits, real = len(reader) * len(selection.names) <= _MOST_LOGITS, None
        if settings.real_labels:
            if len(selection.names) != 1000 or not keeps_logits:
                raise UsageError("--real-labels needs a model of ImageNet's 1,000 classes; leave the option out")
            real = read_real_labels(settings.real_labels)
    console = Console(enabled=world.is_first)
    for notice in reader.notices:
        console.print(f"warning: {notice}")
    if settings.data and not settings.split and reader.is_divided:
        console.print("note: these photos are divided as those of the training were; --split all measures all photos")
    with world.agreeing():
        check_same_data(world, reader)
    check_images(recipe, {split: reader}, world, console.print)
    section = recipe.model
    model = create_model(section.name, section.num_classes, section.in_channels)
    precision = PRECISIONS[recipe.runtime.precision]
    # The model has its final format before weights are loaded: a model in fp32 would round weights in fp64.
    precision.apply_to(model, world.device, recipe.runtime.channels_last is not False)
    with world.agreeing():
        notes = loaded.load_into(model)
    model = fold_batchnorm(model)
    tune_malloc(world.device)
    for note in notes:
        console.print(note)
    make_deterministic(recipe.runtime.deterministic)
    most = _MOST_PIXELS[world.device.type] // recipe.data.image_size**2
    size = max(1, min(recipe.evaluation.batch_size or recipe.batch.micro_size, most))
    num_batches = math.ceil(len(reader) / size)
    keys = evaluation_keys(len(reader), size, world.rank, world.size)
    console.print(f"{section.name} ({loaded.weights} weights) from {checkpoint}")
    console.print(f"{len(reader):,} images of {where}, {recipe.runtime.precision}")
    if selection.notice:
        console.print(f"note: {selection.notice}")
    gc.enable()  # The garbage collector is off during the start of the process (validate.py).
    with (
        device_batches(reader, keys, recipe, world) as batches,
        console.bar("validate", math.ceil(num_batches / world.size)) as bar,
    ):
        result = evaluate(
            _Outputs(model, selection.columns, settings.flip),
            _relabelled(batches, selection, world.device),
            num_batches=num_batches,
            world=world,
            precision=precision,
            on_round=bar.update,
            keep_logits=keeps_logits,
        )
    assert result is not None, "a validation has no stop request"
    metrics = result.metrics
    if not all(map(math.isfinite, metrics.values())):
        console.print("warning: the output of the model is not finite for some images")
    if len(selection.names) <= 5:  # Top-5 is always 100 %.
        metrics = {name: value for name, value in metrics.items() if name != "top5"}
    speed = f"{result.num_images:,} images, {result.images_per_second:.1f} images/s"
    console.print(f"{describe(metrics)} ({speed})")
    summary = summarize(result, selection.names) if world.is_first else {}
    if real is not None and result.logits is not None:
        with world.agreeing():
            names = [reader.name(index) for index in range(len(reader))]
            summary["real_labels"] = real_accuracy(names, result.logits.argmax(1).tolist(), real)
    for line in describe_summary(summary) if summary else ():
        console.print(line)
    return Validation(checkpoint, loaded, recipe, reader, selection, result, summary, settings)


def read_subject(path: Path, weights: str | None, world: World) -> tuple[LoadedWeights, Recipe]:
    """Return the weights in a file and the recipe of the validation, with the precision and workers of this machine.

    Raise CheckpointError or UsageError.
    """
    loaded = open_weights(path, weights)
    model = loaded.identify()
    recipe = loaded.recipe
    if recipe is None:
        how = dict(vars(loaded.preprocessing))
        evaluation = {name: how.pop(name) for name in ("crop_pct", "interpolation")}
        values = {"model": model._asdict(), "data": {**how, "workers": _PUBLISHED_WORKERS}, "evaluation": evaluation}
        batch = {"global_size": _PUBLISHED_BATCH, "micro_size": _PUBLISHED_BATCH}
        recipe = recipe_from_values({**values, "batch": batch}, "published weights")
    precision = recipe.runtime.precision
    if precision == "auto" or (world.device.type == "cpu" and precision in ("bf16", "fp16")):
        precision = resolve_precision("auto", world.device)
    workers = min(recipe.data.workers, len(os.sched_getaffinity(0)))
    return loaded, recipe.changed(runtime={"precision": precision}, data={"workers": workers, "cache": None})


def _with_settings(recipe: Recipe, settings: Namespace) -> Recipe:
    """Return the recipe with the settings of the user, and with the format of the data that the user names."""
    for section, names in _RECIPE_KEYS.items():
        given = {key: value for key, name in names.items() if (value := getattr(settings, name)) is not None}
        recipe = recipe.changed(**{section: given})
    data = recipe.data
    if data.format == "synthetic":
        return recipe
    return recipe.changed(data={"format": detect_format(data.root, data.val_split, data.format)})


def _select(loaded: LoadedWeights, reader: Reader, recipe: Recipe, settings: Namespace, where: str) -> ClassSelection:
    num_classes = recipe.model.num_classes
    if isinstance(reader, SyntheticReader):
        return ClassSelection(list(range(num_classes)), None, list(reader.classes))
    names = read_class_names(settings.classes) if settings.classes else loaded.classes
    if names is not None and len(names) != num_classes:
        raise UsageError(f"--classes names {len(names)} classes, and the model has {num_classes}; name each output")
    class_map = read_class_map(settings.class_map) if settings.class_map else None
    return select_classes(reader.classes, where, num_classes, names, class_map)


class _Outputs(nn.Module):
    """The logits of the columns that count (None: all), also averaged with the logits of the mirror image."""

    def __init__(self, model: nn.Module, columns: list[int] | None, flip: bool) -> None:
        super().__init__()
        self.model, self.columns, self.flip = model, columns, flip

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        if self.flip:
            logits = (logits + self.model(images.flip(3))) / 2
        return logits if self.columns is None else logits[:, self.columns]


def _relabelled(
    batches: Iterator[DeviceBatch], selection: ClassSelection, device: torch.device
) -> Iterator[DeviceBatch]:
    """Yield the batches with the position of each label among the columns in place of the reader's label."""
    columns = selection.columns or range(len(selection.names))
    place = {column: number for number, column in enumerate(columns)}
    table = torch.tensor([place[label] for label in selection.labels], device=device)
    for batch in batches:
        yield batch._replace(labels=table[batch.labels])
