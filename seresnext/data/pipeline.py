"""Batches on the device, built from a recipe and readers."""

import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.augment.erase import build_erase_fill
from seresnext.data.batches import Batch, BatchSource, EvaluationImages, TrainImages
from seresnext.data.decode.pillow import Decoding
from seresnext.data.loading.loader import open_batches
from seresnext.data.loading.prefetch import DeviceBatch, prefetch
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.data.substitute import BadImageCounter
from seresnext.data.synthetic import SyntheticImages
from seresnext.distributed import World
from seresnext.errors import DataError, listed
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS


def check_same_data(world: World, *readers: Reader) -> None:
    """Raise DataError naming the ranks that see other images than the majority: copies of the data may differ."""
    seen = world.gather((socket.gethostname(), tuple((len(reader), reader.fingerprint) for reader in readers)))
    usual = Counter(splits for _, splits in seen).most_common(1)[0][0]
    others = [f"rank {rank} on {host}" for rank, (host, splits) in enumerate(seen) if splits != usual]
    if others:
        one = next(f"rank {rank} on {host}" for rank, (host, splits) in enumerate(seen) if splits == usual)
        raise DataError(
            f"{', '.join(listed(others, most=4))} see other images or classes in data.root than {one}: "
            "names, sizes or the number of images differ; give all machines the same data"
        )


def describe_data(train: Reader, val: Reader) -> dict[str, Any]:
    """Return the description of the data in checkpoints: classes, and size and fingerprint of both splits."""
    description = {
        "classes": list(train.classes),
        "num_images": len(train),
        "fingerprint": train.fingerprint,
        "val": {"num_images": len(val), "fingerprint": val.fingerprint},
    }
    return {**description, "choice": train.choice.model_dump(mode="json")} if train.choice else description


def build_order(recipe: Recipe, reader: Reader) -> Order:
    """Return the order of the training images. Raises DataError when there are too few images for one step."""
    assert recipe.data.shuffle_shards is None or reader.shard_ids is not None
    return Order(
        len(reader),
        recipe.batch.global_size,
        recipe.batch.micro_size,
        recipe.runtime.seed,
        recipe.augment.repeats,
        reader.labels if recipe.data.sampling == "balanced" else None,
        reader.shard_ids,
        recipe.data.shuffle_shards,
    )


def batch_source(recipe: Recipe, reader: Reader, *, training: bool) -> BatchSource:
    """Return the source of training or of validation batches."""
    data, evaluation = recipe.data, recipe.evaluation
    if data.format == "synthetic":
        return SyntheticImages(reader, data.image_size, recipe.model.in_channels, recipe.runtime.seed)
    if not training:
        transform = ResizeCenterCrop(data.image_size, evaluation.crop_pct, evaluation.interpolation)
        return EvaluationImages(reader, transform, decoding=Decoding.of(data))
    return TrainImages(
        reader,
        recipe.augment,
        data.image_size,
        seed=recipe.runtime.seed,
        decoding=Decoding.of(data),
        substitutes=data.on_error == "substitute",
    )


@contextmanager
def device_batches(
    reader: Reader,
    keys: Iterable[BatchKey],
    recipe: Recipe,
    world: World,
    *,
    training: bool = False,
    bad_images: BadImageCounter | None = None,
) -> Iterator[Iterator[DeviceBatch]]:
    """Yield the batches of the keys, normalised on this rank's device. `bad_images` counts replaced images.

    Training batches are also erased, and prepared by compiled code if the recipe compiles.
    """
    source = batch_source(recipe, reader, training=training)
    data, runtime = recipe.data, recipe.runtime
    on_gpu = world.device.type == "cuda"
    with (
        reader.prefetch(keys) as keys,
        open_batches(source, keys, workers=data.workers, timeout=runtime.loader_timeout, pin_memory=on_gpu) as batches,
    ):
        yield prefetch(
            _counted(batches, bad_images) if bad_images else batches,
            device=world.device,
            dtype=PRECISIONS[runtime.precision].weights,
            mean=data.mean,
            std=data.std,
            channels_last=runtime.channels_last is not False,
            fill=build_erase_fill(recipe) if training else None,
            compiled=training and on_gpu and runtime.compile is True,
        )


def _counted(batches: Iterator[Batch], bad_images: BadImageCounter) -> Iterator[Batch]:
    for batch in batches:
        bad_images.note(batch.replaced)
        yield batch


def stand_in_batch(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images (zeros) and labels of a micro-batch with the largest training size, laid out as by `prefetch`.

    The layout matters for a warm-up: torch would compile again for another layout at the first step.
    """
    progressive, batch = recipe.data.progressive, recipe.batch
    size = (progressive and progressive.max_size) or recipe.data.image_size
    images = torch.empty(
        (batch.micro_size, recipe.model.in_channels, size, size),
        dtype=PRECISIONS[recipe.runtime.precision].weights,
        device=device,
        memory_format=torch.channels_last if recipe.runtime.channels_last is not False else torch.contiguous_format,
    )
    return images.zero_(), torch.zeros(batch.micro_size, dtype=torch.int64, device=device)
