"""A validation: a checkpoint of a run, or a published file of weights, measured on a split.

A checkpoint may come from a stranger. Its settings of images and model count. Its settings of the machine do not: the
folder of the index, the server of the images, the number of processes, the memory.
"""

from __future__ import annotations

import gc
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import torch

from seresnext.data.formats import detect_format, open_reader
from seresnext.data.loading.loader import evaluation_keys
from seresnext.data.pipeline import check_same_data, device_batches, validation_source
from seresnext.data.readers import Reader, look_alikes
from seresnext.data.readers.class_labels import labels_by_name
from seresnext.data.shards.remote import is_remote
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, Failure
from seresnext.evaluation import describe_metrics, evaluate
from seresnext.metrics.console import Console
from seresnext.models import LoadedWeights, Preprocessing, create_model, find_weights, open_weights
from seresnext.printable import printable, shown_path
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.schema import Recipe
from seresnext.run.opening import check_images
from seresnext.runtime import PRECISIONS, make_deterministic, resolve_precision

# Settings that a published file of weights lacks. The values suit 2 cores with 24 GiB, and a GPU.
_PUBLISHED_BATCH = 64
_PUBLISHED_WORKERS = 4
# The most pixels of one forward pass: 83 images of 224 x 224 on a CPU, 1,337 images on a GPU.
_MOST_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 26}


def validate(
    checkpoint: Path, world: World, data: str | None, split: str | None, weights: str | None, json_file: Path | None
) -> None:
    """Measure a file of weights and print top-1, top-5, loss and images per second.

    An argument that is None comes from the file. Raises CheckpointError for a file that is refused, DataError for a
    split that cannot be used, UsageError for weights that the file lacks.
    """
    with world.agreeing():
        checkpoint = find_weights(checkpoint)
        loaded, recipe = read_subject(checkpoint, weights, world)
        if data is None and is_remote(recipe.data.root):
            raise CheckpointError(
                f"{shown_path(checkpoint)} has the images of a server, {recipe.data.root}, and a checkpoint must not "
                f"choose the server; if you trust the server, give --data {recipe.data.root}"
            )
        root, split = data or recipe.data.root, split or recipe.data.val_split
        reader = _open_split(loaded, recipe, root, split)
    console = Console(enabled=world.is_first)
    for notice in reader.notices:
        console.print(f"warning: {notice}")
    labels, notice = None, None
    with world.agreeing():
        check_same_data(world, reader)
        if loaded.classes is None and not isinstance(reader, SyntheticReader):
            labels, notice = labels_by_name(reader.classes, f"{root}/{split}")
    check_images(recipe, {split: reader}, world, console.print)
    section = recipe.model
    model = create_model(section.name, section.num_classes, section.in_channels)
    precision = PRECISIONS[recipe.runtime.precision]
    # The model has its final format before weights are loaded: a model in fp32 would round weights in fp64.
    precision.apply_to(model, world.device, recipe.runtime.channels_last is not False)
    with world.agreeing():
        notes = loaded.load_into(model)
    for note in notes:
        console.print(note)
    make_deterministic(recipe.runtime.deterministic)
    most = _MOST_PIXELS[world.device.type] // recipe.data.image_size**2
    size = max(1, min(recipe.evaluation.batch_size or recipe.batch.micro_size, most))
    num_batches = math.ceil(len(reader) / size)
    keys = evaluation_keys(len(reader), size, world.rank, world.size)
    console.print(f"{section.name} ({loaded.weights} weights) from {checkpoint}")
    console.print(f"{len(reader):,} images of {root}/{split}, {recipe.runtime.precision}")
    if notice:
        console.print(f"note: {shown_path(checkpoint)} has no class names; {notice}")
    source = validation_source(recipe, reader)
    gc.enable()  # The garbage collector is off during the start of the process (validate.py).
    with (
        device_batches(source, reader, keys, recipe, precision, world) as batches,
        console.bar("validate", math.ceil(num_batches / world.size)) as bar,
    ):
        if labels is not None:  # the model's labels in place of the reader's
            table = torch.tensor(labels, device=world.device)
            batches = (batch._replace(labels=table[batch.labels]) for batch in batches)
        result = evaluate(
            model, batches, num_batches=num_batches, world=world, precision=precision, on_round=bar.advance
        )
    assert result is not None, "a validation has no stop request"
    metrics = result.metrics
    if not all(map(math.isfinite, metrics.values())):
        console.print("warning: the output of the model is not finite for some images")
    if section.num_classes <= 5:  # Top-5 is always 100 %.
        metrics = {name: value for name, value in metrics.items() if name != "top5"}
    speed = f"{result.num_images:,} images, {result.images_per_second:.1f} images/s"
    console.print(f"{describe_metrics(metrics)}  ({speed})")
    if json_file and world.is_first:
        report = {
            **{name: value if math.isfinite(value) else None for name, value in result.to_dict().items()},
            "model": section.name,
            "weights": loaded.weights,
            "checkpoint": str(checkpoint),
            "preprocessing": asdict(Preprocessing.of_recipe(recipe)),
        }
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise Failure(
                f"{json_file} cannot be written ({error.strerror}); choose another file with --json"
            ) from None


def read_subject(path: Path, weights: str | None, world: World) -> tuple[LoadedWeights, Recipe]:
    """Return the weights in a file and the recipe of the validation. Raise CheckpointError or UsageError."""
    loaded = open_weights(path, weights)
    model = loaded.identify()
    if loaded.recipe is not None:
        return loaded, _for_this_machine(loaded.recipe, world)
    preprocessing = loaded.preprocessing
    values = {
        "model": model._asdict(),
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
    return loaded, recipe_from_values(values, "published weights")


def _for_this_machine(recipe: Recipe, world: World) -> Recipe:
    """Return the recipe of a file with the settings of this machine: precision, workers, cache."""
    precision = recipe.runtime.precision
    if precision == "auto" or (world.device.type == "cpu" and precision in ("bf16", "fp16")):
        precision = resolve_precision("auto", world.device)
    runtime = recipe.runtime.model_copy(update={"precision": precision})
    workers = min(recipe.data.workers, len(os.sched_getaffinity(0)))
    data = recipe.data.model_copy(update={"workers": workers, "cache": None})
    return recipe.model_copy(update={"runtime": runtime, "data": data})


def _open_split(loaded: LoadedWeights, recipe: Recipe, root: str, split: str) -> Reader:
    """Return the reader of a split. Raises DataError for classes that are not the classes of the model."""
    if recipe.data.format == "synthetic":
        assert recipe.data.synthetic_images is not None
        return SyntheticReader(recipe.data.synthetic_images, recipe.model.num_classes)
    cache = Path(recipe.data.cache) if recipe.data.cache else None
    reader = open_reader(root, split, detect_format(root, split, recipe.data.format), cache, recipe.data.cache_size)
    if loaded.classes is not None and list(reader.classes) != loaded.classes:
        new, gone = set(reader.classes) - set(loaded.classes), set(loaded.classes) - set(reader.classes)
        only_here, only_there = (", ".join(map(printable, sorted(names)[:5])) or "-" for names in (new, gone))
        raise DataError(
            f"{root}/{split} has other classes than the model was trained on ({len(reader.classes)} here, "
            f"{len(loaded.classes)} there; only here: {only_here}; only there: {only_there}), so labels would not mean "
            f"the same{look_alikes(new, gone)}; give data of the model's classes with --data DIR"
        )
    if len(reader.classes) != recipe.model.num_classes:
        raise DataError(
            f"{root}/{split} has {len(reader.classes)} class folders, and the model has {recipe.model.num_classes} "
            "classes; give data of the model's classes with --data DIR"
        )
    return reader
