"""What a network says about each image: probabilities of the classes, and the distance to other images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from seresnext.classifier import Classifier
from seresnext.data import pipeline
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.readers import Reader
from seresnext.distributed import World
from seresnext.doctor.images import Subset
from seresnext.errors import DataError
from seresnext.models import LoadedWeights, Preprocessing, SENet
from seresnext.models.folding import fold_batchnorm
from seresnext.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from seresnext.models.pretrained import build_pretrained
from seresnext.models.registry import build_model
from seresnext.process.packages import extra
from seresnext.progress import progress
from seresnext.randomness import permutation_at, torch_seed_at
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.schema import Recipe
from seresnext.run.resolve import resolve_auto
from seresnext.runtime import PRECISIONS
from seresnext.training.ema import Ema
from seresnext.training.loss import build_loss
from seresnext.training.optimizer import build_optimizer
from seresnext.training.plan import build_plan
from seresnext.training.schedule import build_schedule
from seresnext.training.step import StepSettings, TrainingStep

FOLDS = 4
_EPOCHS, _FEWEST_STEPS, _BATCH = 8, 100, 32
_SIDE = 64
_MODEL = "seresnext26"
_NEIGHBOURS = 10  # as in cleanlab's OutOfDistribution
_DECAY = 0.995


@dataclass(frozen=True)
class Opinions:
    """The opinions of a network, with a row for each image.

    probabilities: of the classes, float32 N K. distances: the mean distance of the features to the 10 nearest images
    (cosine), over the median of these distances; float N.
    """

    probabilities: np.ndarray
    distances: np.ndarray


def deal_folds(labels: np.ndarray, groups: np.ndarray, folds: int) -> np.ndarray:
    """Return the fold of each image (int N). Each class is spread evenly, and the images of a group share a fold.

    A copy in another fold would teach the network the label of the image, right or wrong.
    """
    order = permutation_at(0, "doctor", count=len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    _, first = np.unique(groups, return_index=True)
    return fold[first][groups]


def cross_validate(
    reader: Reader, groups: np.ndarray, folds: int, weights: LoadedWeights | None, device: torch.device
) -> Opinions:
    """Return opinions out of sample: each image gets the opinion of a network that was trained on the other folds.

    The networks start from `weights` with a new classifier, or from random weights. `groups` are as in `deal_folds`.
    """
    world, fold = World(device=device), deal_folds(reader.labels, groups, folds)
    recipe = fold_recipe(reader, weights, world, len(reader) - int(np.bincount(fold).max()))
    probabilities = np.empty((len(reader), len(reader.classes)), np.float32)
    distances = np.empty(len(reader))
    with progress("train", folds * recipe.length.steps(1), " steps") as advance:
        for number in range(folds):
            others, own = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if not len(own):
                continue
            model = train(recipe, Subset(reader, others), weights, world, advance)
            probabilities[own], features = predict(recipe, model, Subset(reader, own), world)
            _, known = predict(recipe, model, Subset(reader, others), world)
            distances[own] = feature_distances(known, features)
    return Opinions(probabilities, distances)


def ask(reader: Reader, weights: LoadedWeights, device: torch.device) -> Opinions:
    """Return the opinions of the network in a file, whose classes are those of the reader in the same order."""
    world = World(device=device)
    recipe = fold_recipe(reader, weights, world, len(reader))
    probabilities, features = predict(recipe, build_pretrained(weights).to(device), reader, world)
    return Opinions(probabilities, feature_distances(features))


def fold_recipe(reader: Reader, weights: LoadedWeights | None, world: World, count: int) -> Recipe:
    """Return the recipe of a short training on `count` images: that of `cifar10`, or a fine-tune of the weights."""
    name = weights.identify().name if weights else _MODEL
    how = weights.preprocessing if weights else Preprocessing(_SIDE, 1.0, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    batch = _BATCH if count >= _BATCH else max(2, count)
    values = {
        "model": {"name": name, "num_classes": len(reader.classes), "drop_rate": 0.0},
        "data": {
            "image_size": how.image_size,
            "mean": list(how.mean),
            "std": list(how.std),
            "workers": min(4, len(os.sched_getaffinity(0)) - 1),
        },
        "augment": {"crop_scale": [0.8, 1.0], "crop_ratio": [0.9, 1.1]},
        "batch": {"global_size": batch, "micro_size": batch // 2 if batch == _BATCH else batch},
        "length": f"{max(_FEWEST_STEPS, _EPOCHS * count // batch)}st",
        "optimizer": {"lr": 0.005 if weights else 0.02, "nesterov": True, "weight_decay": 1e-4},
        "schedule": {"name": "cosine", "warmup": f"{_FEWEST_STEPS // 2}st"},
        "evaluation": {"crop_pct": how.crop_pct, "interpolation": how.interpolation},
        "runtime": {"compile": False},
    }
    return resolve_auto(recipe_from_values(values, "the doctor"), None, world)[0]


def train(
    recipe: Recipe, reader: Reader, weights: LoadedWeights | None, world: World, advance: Callable[[int], None]
) -> SENet:
    """Return the average (EMA) of a network that was trained on a reader. Call `advance(1)` after each step."""
    precision, seed = PRECISIONS[recipe.runtime.precision], recipe.runtime.seed
    order = pipeline.build_order(recipe, reader)
    plan = build_plan(recipe, order.steps_per_epoch)
    torch.manual_seed(torch_seed_at(seed, "init"))
    model = build_model(recipe.model)
    precision.apply_to(model, world.device, recipe.runtime.channels_last is not False)
    if weights:
        weights.load_into(model, reset_head=True)
    schedule, ema = build_schedule(recipe, plan), Ema(model, _DECAY, warmup=True)
    settings = StepSettings(order.replicas, seed, precision)
    step = TrainingStep(
        model, build_optimizer(model, recipe.optimizer), build_loss(recipe.loss), settings, world, ema=ema
    )
    keys = train_keys(order, step.own_replicas, 0, plan.total)
    source = pipeline.train_source(recipe, reader)
    with pipeline.device_batches(source, reader, keys, recipe, precision, world, training=True) as batches:
        for number in range(plan.total):
            step(batches, step=number, lr=schedule.lr_at(number), stop=False).result()
            advance(1)
    assert isinstance(ema.model, SENet)
    return ema.model


def predict(recipe: Recipe, model: SENet, reader: Reader, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N K) and features (N C) of all images. The logits are means with the mirror image.

    Raise DataError for an image that has changed since the look.
    """
    classifier = Classifier(fold_batchnorm(model), reader.classes, Preprocessing.of_recipe(recipe))
    keys = evaluation_keys(len(reader), _BATCH, 0, 1)
    source = pipeline.validation_source(recipe, reader)
    rows = []
    with pipeline.device_batches(source, reader, keys, recipe, PRECISIONS["fp32"], world) as batches:
        for batch in batches:
            for _, message in batch.unreadable:
                raise DataError(message)
            (logits, features), (mirrored, _) = (classifier.outputs(x) for x in (batch.images, batch.images.flip(3)))
            rows.append((((logits + mirrored) / 2).softmax(1).numpy(), features.numpy()))
    probabilities, features = zip(*rows, strict=True)
    return np.concatenate(probabilities), np.concatenate(features)


def feature_distances(known: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """Return the mean cosine distance of features (N C) to the 10 nearest known ones (M C), over the median of the N.

    Without `features` the known ones are compared with each other.
    """
    with extra("report"):
        from sklearn.neighbors import NearestNeighbors
    count = min(_NEIGHBOURS, len(known) - (features is None))
    distances = NearestNeighbors(n_neighbors=count, metric="cosine").fit(known).kneighbors(features)[0].mean(1)
    return distances / max(np.median(distances), 1e-9)
