"""What batches are made of and by: training images, decoded and augmented, and those of evaluation."""

from __future__ import annotations

import math
import time
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from seresnext.data.augment.crop import Crop, RandomResizedCrop, ResizeCenterCrop
from seresnext.data.augment.erase import RandomErasing
from seresnext.data.augment.policies import PolicyPipeline
from seresnext.data.crops import Crops
from seresnext.data.decode.regions import HAS_NVIMGCODEC
from seresnext.data.decode.resize import resize_into
from seresnext.data.loading import slots
from seresnext.data.loading.whereabouts import set_current_images
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.substitute import ReplacedImage
from seresnext.errors import DataError
from seresnext.randomness import rng_at


class Batch(NamedTuple):
    """A batch on the host.

    `images` are uint8 N C H W in channels-last memory, `labels` int64 N, `flips` bool N (the device mirrors these),
    `indices` int64 N. `step` and `replica` say whose micro-batch it is; for evaluation, `step` counts batches. `boxes`
    are what the device erases: int64 N 4 of top, left, height, width in the mirrored image, or None. `substitutions`
    are bad images of training with the images that replace these; the index and the label of the bad image stay.
    `unreadable` are the bad images of an evaluation, each as index and message; the batch has black images instead.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor
    indices: Tensor
    step: int
    replica: int
    boxes: Tensor | None = None
    substitutions: tuple[ReplacedImage, ...] = ()
    unreadable: tuple[tuple[int, str], ...] = ()


class BatchSource(Protocol):
    """What makes a batch of a key; it runs in a worker. An image has `image_bytes` bytes at most, or usually."""

    @property
    def image_bytes(self) -> int: ...

    def make(self, key: BatchKey) -> Batch: ...

    def name(self, index: int) -> str:
        """The name of an image, for messages."""
        ...


class TrainImages:
    """Training batches: decoded, randomly cropped, each image by draws at its own address.

    With `substitutes`, another image of its class takes the place of one that cannot be used. `fast` says whether
    nvimgcodec decodes.
    """

    def __init__(
        self,
        reader: Reader,
        transform: RandomResizedCrop,
        *,
        seed: int,
        max_pixels: int,
        retouch: PolicyPipeline | None = None,
        erasing: RandomErasing | None = None,
        substitutes: bool = False,
        fast: bool = HAS_NVIMGCODEC,
    ) -> None:
        self._reader = reader
        self._transform = transform
        self._seed = seed
        self._crops = Crops(reader, seed=seed, max_pixels=max_pixels, substitutes=substitutes, fast=fast)
        self._retouch = retouch
        self._erasing = erasing

    @property
    def image_bytes(self) -> int:
        """Of an image of a batch."""
        return 3 * self._transform.image_size**2

    def name(self, index: int) -> str:
        """The name of an image."""
        return self._reader.name(index)

    def make(self, key: BatchKey) -> Batch:
        """The batch of a key. Raises DataError naming an image that cannot be used."""
        addresses = key.addresses()
        flips = [False] * len(addresses)

        def choose(position: int, width: int, height: int) -> Crop:
            crop = self._transform.draw(width, height, rng_at(self._seed, "augment", *addresses[position]))
            flips[position] = crop.flip
            return crop

        size = key.image_size or self._transform.image_size
        images = _allocate(len(addresses), size)
        substitutions = []
        for position, pixels, substitution in self._crops.of(key, choose):
            image = images[position]
            resize_into(image, pixels, self._transform.interpolation)
            if self._retouch:
                draws = rng_at(self._seed, "retouch", *addresses[position])
                image.copy_(self._retouch(image, flips[position], draws))
                flips[position] = False
            if substitution:
                substitutions.append(substitution)
        batch = collate(key, images, flips, self._reader.labels)._replace(substitutions=tuple(substitutions))
        if self._erasing is None:
            return batch
        boxes = [self._erasing.draw(size, size, rng_at(self._seed, "erase", *address)) for address in addresses]
        return batch._replace(boxes=torch.tensor(boxes))


# Seconds. A read that fails after a longer time shows a fault of the storage: the next read would take as long.
_SLOW_FAILURE = 5.0


class EvaluationImages:
    """Evaluation batches: decoded, resized and cropped by Pillow."""

    def __init__(self, reader: Reader, transform: ResizeCenterCrop, *, max_pixels: int) -> None:
        self._reader = reader
        self._transform = transform
        self._max_pixels = max_pixels

    @property
    def image_bytes(self) -> int:
        """Of an image of a batch."""
        return 3 * self._transform.image_size**2

    def name(self, index: int) -> str:
        """The name of an image."""
        return self._reader.name(index)

    def make(self, key: BatchKey) -> Batch:
        """Return the batch of a key, with the images that cannot be used in `unreadable`.

        Raises DataError when the storage does not answer.
        """
        images = _allocate(len(key.indices), self._transform.image_size)
        unreadable = []
        for image, index in zip(images, key.indices.tolist(), strict=True):
            set_current_images([index])
            started = time.monotonic()
            try:
                image.copy_(self._transform.of_file(self._reader.read(index), self.name(index), self._max_pixels))
            except DataError as error:
                if time.monotonic() - started > _SLOW_FAILURE:
                    raise
                image.zero_()
                unreadable.append((index, str(error)))
        batch = collate(key, images, [False] * len(images), self._reader.labels)
        return batch._replace(unreadable=tuple(unreadable))


def _allocate(count: int, size: int) -> Tensor:
    """Memory for a batch, uint8 N size size 3. In a worker it is shared, so that it is not copied on its way."""
    shape = (count, size, size, 3)
    if (memory := slots.allocate(*shape)) is not None:
        return memory
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    try:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))
    except (OSError, RuntimeError) as error:
        raise no_shared_memory(error) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)  # pyright: ignore[reportArgumentType]


def no_shared_memory(error: Exception) -> DataError:
    """What to tell when a worker cannot share a batch."""
    return DataError(
        f"a loader worker has no shared memory for a batch ({error}); give the container more "
        "(docker run --shm-size=16g), or lower data.workers or batch.micro_size"
    )


def collate(key: BatchKey, images: Tensor, flips: list[bool], labels: np.ndarray) -> Batch:
    """The batch of a key: `images` are uint8 N H W C, `labels` those of all images of the reader."""
    return Batch(
        images.permute(0, 3, 1, 2),
        torch.from_numpy(labels[key.indices].astype(np.int64)),  # Readers keep them as narrow as their file does.
        torch.tensor(flips),
        torch.from_numpy(key.indices.copy()),
        key.step,
        key.replica,
    )
