"""Networks that judge each image: probabilities of the classes, and the distance to the most similar images."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from seresnext.classifier import MAX_PIXELS, Classifier, class_names
from seresnext.data import pipeline
from seresnext.data.decode.pillow import Decoding
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.readers import Reader
from seresnext.distributed import World
from seresnext.doctor.images import Collection
from seresnext.errors import DataError, UsageError, listed, printable
from seresnext.models import LoadedWeights, Preprocessing, SENet, build_pretrained
from seresnext.models.pretrained import fold_batchnorm
from seresnext.process.packages import extra
from seresnext.progress import progress
from seresnext.randomness import permutation_at
from seresnext.recipe import Recipe, load_recipe
from seresnext.run.assemble import build_step, new_model
from seresnext.run.environment import resolve_auto
from seresnext.training.plan import build_plan
from seresnext.training.schedule import build_schedule

FOLDS = 4
_EPOCHS, _FINE_TUNE_EPOCHS, _FEWEST_STEPS = 8, 4, 100
_NEIGHBOURS = 10  # as in cleanlab's OutOfDistribution


@dataclass(frozen=True)
class Networks:
    """The networks to ask. `folds` trainings (0: none) start from the weights; None: from random weights.

    image_size: of the trainings; None: that of the weights, or else that of the recipe.
    """

    device: torch.device
    weights: LoadedWeights | None = None
    folds: int = FOLDS
    image_size: int | None = None

    @property
    def decoding(self) -> Decoding:
        """Return the decoding of the images: that of the recipe `finetune`; without trainings that of the weights."""
        if self.folds or not self.weights:
            return Decoding.of(load_recipe("finetune").recipe.data)
        return self.weights.preprocessing.decoding(MAX_PIXELS)


def ask(reader: Reader, weights: LoadedWeights, networks: Networks) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (float32 N K) and feature distances (float N) by the network in a file."""
    names, world = class_names(weights), World(device=networks.device)
    recipe = short_recipe(reader, networks, world, len(reader))
    probabilities, features = predict(recipe, build_pretrained(weights).to(world.device), reader, names, world)
    probabilities = probabilities[:, [names.index(name) for name in reader.classes]]
    return probabilities / np.maximum(probabilities.sum(1, keepdims=True), 1e-9), distances(features)


def check_known(reader: Reader, weights: LoadedWeights) -> None:
    """Raise UsageError if the network in a file lacks a class of the reader."""
    names = class_names(weights)
    if missing := [printable(name) for name in reader.classes if name not in names]:
        raise UsageError(
            f"{weights.source} does not know the classes {', '.join(listed(missing, 5))}; with --folds {FOLDS}, "
            "networks that start from the file learn the classes"
        )


def cross_validate(reader: Collection, groups: np.ndarray, networks: Networks) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and feature distances by networks that were trained on the other folds, as `ask` does.

    The networks start from the weights with a new classifier. The images of a group share a fold. Raise DataError if
    fewer than two images remain for a training.
    """
    world, fold = World(device=networks.device), deal_folds(reader.labels, groups, networks.folds)
    count = len(reader) - int(np.bincount(fold).max())
    if count < 2:
        raise DataError(f"apart from copies, {networks.folds} trainings have too few images; use --quick")
    recipe = short_recipe(reader, networks, world, count)
    found = np.empty((len(reader), len(reader.classes)), np.float32), np.empty(len(reader))
    with progress("train", networks.folds * recipe.length.count, " steps") as advance:
        for number in np.unique(fold):
            own, others = np.flatnonzero(fold == number), reader.take(np.flatnonzero(fold != number))
            model = train(recipe, others, networks.weights, world, advance)
            found[0][own], features = predict(recipe, model, reader.take(own), reader.classes, world)
            found[1][own] = distances(predict(recipe, model, others, reader.classes, world)[1], features)
    return found


def deal_folds(labels: np.ndarray, groups: np.ndarray, folds: int) -> np.ndarray:
    """Return the fold of each image (int N). Each class is spread evenly, and the images of a group share a fold.

    A copy in another fold would teach a network the label of the image, right or wrong.
    """
    order = permutation_at(0, "doctor", count=len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return fold[first][group]


def short_recipe(reader: Reader, networks: Networks, world: World, count: int) -> Recipe:
    """Return the recipe of a short training on `count` images: `cifar10`, with network and images of the weights."""
    decoding = networks.decoding
    settings = [f"model.num_classes={len(reader.classes)}", "runtime.compile=false"]
    settings += [f"data.{key}={json.dumps(value)}" for key, value in vars(decoding).items()]
    if weights := networks.weights:
        how = weights.preprocessing
        settings += [f"model.name={weights.identify().name}", "optimizer.lr=0.005", f"data.image_size={how.image_size}"]
        settings += [f"data.{key}=[{', '.join(map(str, getattr(how, key)))}]" for key in ("mean", "std")]
        settings += [f"evaluation.{key}={getattr(how, key)}" for key in ("crop_pct", "interpolation")]
    settings += [f"data.image_size={networks.image_size}"] if networks.image_size else []
    batch = min(32, max(2, count))
    epochs = _FINE_TUNE_EPOCHS if networks.weights else _EPOCHS
    steps = max(_FEWEST_STEPS, epochs * count // batch)
    settings += [f"length={steps}st", f"schedule.warmup={steps // epochs}st"]
    settings += [f"batch={{global_size: {batch}, micro_size: {16 if batch == 32 else batch}}}"]
    return resolve_auto(load_recipe("cifar10", settings).recipe, None, world)[0]


def train(
    recipe: Recipe, reader: Reader, weights: LoadedWeights | None, world: World, advance: Callable[[int], None]
) -> SENet:
    """Return the average (EMA) of a network that was trained on a reader. Call `advance(1)` after each step."""
    order = pipeline.build_order(recipe, reader)
    plan = build_plan(recipe, order.steps_per_epoch)
    schedule, model = build_schedule(recipe, plan), new_model(recipe, world)
    if weights:
        weights.load_into(model, reset_head=True)
    step = build_step(recipe, model, plan, world)
    keys = train_keys(order, step.own_replicas, 0, plan.total)
    with pipeline.device_batches(reader, keys, recipe, world, training=True) as batches:
        for number in range(plan.total):
            step(batches, step=number, lr=schedule.lr_at(number), stop=False).result()
            advance(1)
    assert step.ema
    assert isinstance(step.ema.model, SENet)
    return step.ema.model


def predict(
    recipe: Recipe, model: SENet, reader: Reader, classes: list[str] | tuple[str, ...], world: World
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N K) and features (N C) of all images. The logits are means with the mirror image.

    Raise DataError for an image that has changed since the look.
    """
    classifier = Classifier(fold_batchnorm(model), classes, Preprocessing.of_recipe(recipe))
    keys, rows = evaluation_keys(len(reader), 32, 0, 1), []
    with pipeline.device_batches(reader, keys, recipe, world) as batches:
        for batch in batches:
            for _, message in batch.unreadable:
                raise DataError(message)
            (logits, features), (mirrored, _) = (classifier.outputs(x) for x in (batch.images, batch.images.flip(3)))
            rows.append((((logits + mirrored) / 2).softmax(1).numpy(), features.numpy()))
    probabilities, features = map(np.concatenate, zip(*rows, strict=True))
    return probabilities, features


def distances(known: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """Return the mean cosine distance of features (N C) to the 10 nearest known ones (M C), over the median of the N.

    Without `features` the known ones are compared with each other.
    """
    with extra("report"):
        from sklearn.neighbors import NearestNeighbors
    count = min(_NEIGHBOURS, len(known) - (features is None))
    found = NearestNeighbors(n_neighbors=count, metric="cosine").fit(known).kneighbors(features)[0].mean(1)
    return found / max(np.median(found), 1e-9)
