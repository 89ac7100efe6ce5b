"""From a recipe and readers to batches on the device."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from seresnext.data.augment.crop import RandomResizedCrop, ResizeCenterCrop
from seresnext.data.augment.erase import RandomErasing, build_erase_fill
from seresnext.data.augment.policies import build_policies
from seresnext.data.batches import BatchSource, EvaluationImages, TrainImages
from seresnext.data.loading.loader import open_batches
from seresnext.data.loading.prefetch import DeviceBatch, prefetch
from seresnext.data.order import BatchKey, Order, block_shuffle
from seresnext.data.readers import Reader
from seresnext.data.shards.readahead import prefetch_shards
from seresnext.data.shards.reader import ShardReader
from seresnext.data.substitute import BadImageCounter
from seresnext.data.synthetic import SyntheticImages, SyntheticReader
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS, Precision


def check_same_data(world: World, *readers: Reader) -> None:
    """Raise DataError unless all ranks see the same images. Copies of the data on several machines may differ.

    The message names the ranks that differ from the majority.
    """
    seen = world.gather((socket.gethostname(), tuple((len(reader), reader.fingerprint) for reader in readers)))
    usual = Counter(splits for _, splits in seen).most_common(1)[0][0]
    others = [f"rank {rank} on {host}" for rank, (host, splits) in enumerate(seen) if splits != usual]
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        rank, host = next((rank, host) for rank, (host, splits) in enumerate(seen) if splits == usual)
        raise DataError(
            f"{', '.join(others[:4])}{more} see other images or classes under the same path than rank {rank} on "
            f"{host}: names, sizes or the number of images differ; give all machines the same data"
        )


def build_order(recipe: Recipe, reader: Reader) -> Order:
    """The order of the training images. Raises DataError when there are too few for one step."""
    together = recipe.data.shuffle_shards
    assert together is None or isinstance(reader, ShardReader)
    return Order(
        len(reader),
        recipe.batch.global_size,
        recipe.batch.micro_size,
        recipe.runtime.seed,
        recipe.augment.repeats,
        block_shuffle(reader.shard_ids, together) if together and isinstance(reader, ShardReader) else None,
    )


def train_source(recipe: Recipe, reader: Reader) -> BatchSource:
    """What makes training batches of keys."""
    data, augment = recipe.data, recipe.augment
    if isinstance(reader, SyntheticReader):
        return SyntheticImages(reader, data.image_size, recipe.model.in_channels, recipe.runtime.seed)
    transform = RandomResizedCrop(
        data.image_size, augment.crop_scale, augment.crop_ratio, augment.flip, augment.interpolation
    )
    return TrainImages(
        reader,
        transform,
        seed=recipe.runtime.seed,
        max_pixels=data.max_pixels,
        substitutes=data.on_error == "substitute",
        policies=build_policies(augment),
        erasing=RandomErasing(erasing.probability, erasing.scale, erasing.ratio)
        if (erasing := augment.erasing)
        else None,
    )


def validation_source(recipe: Recipe, reader: Reader) -> BatchSource:
    """What makes validation batches of keys."""
    data = recipe.data
    if isinstance(reader, SyntheticReader):
        return SyntheticImages(reader, data.image_size, recipe.model.in_channels, recipe.runtime.seed)
    transform = ResizeCenterCrop(data.image_size, recipe.evaluation.crop_pct, recipe.evaluation.interpolation)
    return EvaluationImages(reader, transform, max_pixels=data.max_pixels)


@contextmanager
def device_batches(
    source: BatchSource,
    reader: Reader,
    keys: Iterable[BatchKey],
    recipe: Recipe,
    precision: Precision,
    world: World,
    *,
    training: bool = False,
    tally: BadImageCounter | None = None,
) -> Iterator[Iterator[DeviceBatch]]:
    """Batches of the keys, normalised on this rank's device, made by the recipe's number of workers from a reader.

    Only those of training are erased, and compiled where the recipe says so. `tally` counts images that were replaced.
    """
    data, runtime = recipe.data, recipe.runtime
    on_gpu = world.device.type == "cuda"
    with (
        prefetch_shards(reader, keys) as keys,
        open_batches(source, keys, workers=data.workers, timeout=runtime.loader_timeout, pin_memory=on_gpu) as batches,
    ):
        yield prefetch(
            tally.watch(batches) if tally else batches,
            device=world.device,
            dtype=precision.weights,
            mean=data.mean,
            std=data.std,
            channels_last=runtime.channels_last is not False,
            filling=build_erase_fill(recipe) if training else None,
            compiled=training and on_gpu and runtime.compile is True,
        )


def stand_in_batch(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images of a micro-batch that mean nothing, of the largest size of training and as `prefetch` lays them out.

    Compiled code is for one layout of images: with another all of it would be made again at the first step. Also
    returns their labels.
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
