"""Batches on the host: training images, cropped and augmented, and evaluation images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from seresnext.data.augment.crop import RandomResizedCrop, ResizeCenterCrop, resize_into
from seresnext.data.augment.erase import RandomErasing
from seresnext.data.augment.policies import PolicyPipeline
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Choose, Crop, Encoded, RegionDecoder, open_decoder
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.substitute import ADVICE, ReplacedImage, candidates
from seresnext.data.worker_status import set_current_images
from seresnext.errors import DataError
from seresnext.randomness import rng_at

# Images that are decoded in one call. The pixels of so few images are still in the processor's cache for the resize.
_DECODED_TOGETHER = 8
# Seconds. A read that fails after a longer time shows a fault of the storage: the next read would take as long.
_SLOW_FAILURE = 5.0


class Batch(NamedTuple):
    """A batch on the host.

    `images` are uint8 N C H W in channels-last memory, `labels` int64 N, `indices` int64 N. The device mirrors the
    images of `flips` (bool N) and erases `boxes` (int64 N 4: top, left, height, width in the mirrored image; or None).
    `step` and `replica` are the address of a training batch; for evaluation, `step` counts batches. `replaced` are bad
    training images with their replacements; index and label are still the index and label of the bad image.
    `unreadable` are the bad images of an evaluation, each as index and message; the batch has black images instead.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor
    indices: Tensor
    step: int
    replica: int
    boxes: Tensor | None = None
    replaced: tuple[ReplacedImage, ...] = ()
    unreadable: tuple[tuple[int, str], ...] = ()


class BatchSource(Protocol):
    """Makes the batch of a key, in a loader worker or in the trainer's process."""

    def make(self, key: BatchKey) -> Batch: ...

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        ...


class TrainImages:
    """Training batches: each image is cropped and augmented by draws at the address of the image.

    With `substitutes`, another image of the class replaces a bad image. `fast`: decode with nvimgcodec.
    """

    def __init__(
        self,
        reader: Reader,
        transform: RandomResizedCrop,
        *,
        seed: int,
        max_pixels: int,
        policies: PolicyPipeline | None = None,
        erasing: RandomErasing | None = None,
        substitutes: bool = False,
        fast: bool = HAS_NVIMGCODEC,
    ) -> None:
        self._reader = reader
        self._transform = transform
        self._seed = seed
        self._crops = CropReader(reader, seed=seed, max_pixels=max_pixels, substitutes=substitutes, fast=fast)
        self._policies = policies
        self._erasing = erasing

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self._reader.name(index)

    def make(self, key: BatchKey) -> Batch:
        """Return the batch of a key. Raises DataError naming an image that cannot be used."""
        addresses = key.addresses()
        flips = [False] * len(addresses)

        def choose(position: int, width: int, height: int) -> Crop:
            crop = self._transform.draw(width, height, rng_at(self._seed, "augment", *addresses[position]))
            flips[position] = crop.flip
            return crop

        size = key.image_size or self._transform.image_size
        images = torch.empty((len(addresses), size, size, 3), dtype=torch.uint8)
        replaced = []
        for position, pixels, replacement in self._crops.read(key, choose):
            image = images[position]
            resize_into(image, pixels, self._transform.interpolation)
            if self._policies:
                draws = rng_at(self._seed, "retouch", *addresses[position])
                image.copy_(self._policies(image, flips[position], draws))
                flips[position] = False
            if replacement:
                replaced.append(replacement)
        batch = collate(key, images, flips, self._reader.labels)._replace(replaced=tuple(replaced))
        if self._erasing is None:
            return batch
        boxes = [self._erasing.draw(size, size, rng_at(self._seed, "erase", *address)) for address in addresses]
        return batch._replace(boxes=torch.tensor(boxes))


class EvaluationImages:
    """Evaluation batches: decoded, resized and cropped by Pillow."""

    def __init__(self, reader: Reader, transform: ResizeCenterCrop, *, max_pixels: int) -> None:
        self._reader = reader
        self._transform = transform
        self._max_pixels = max_pixels

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self._reader.name(index)

    def make(self, key: BatchKey) -> Batch:
        """Return the batch of a key, with the images that cannot be used in `unreadable`.

        Raises DataError when the storage does not answer.
        """
        size = self._transform.image_size
        images = torch.empty((len(key.indices), size, size, 3), dtype=torch.uint8)
        unreadable = []
        for image, index in zip(images, key.indices.tolist(), strict=True):
            set_current_images([index])
            started = time.monotonic()
            try:
                image.copy_(
                    self._transform.decode_and_crop(self._reader.read(index), self.name(index), self._max_pixels)
                )
            except DataError as error:
                if time.monotonic() - started > _SLOW_FAILURE:
                    raise
                image.zero_()
                unreadable.append((index, str(error)))
        batch = collate(key, images, [False] * len(images), self._reader.labels)
        return batch._replace(unreadable=tuple(unreadable))


def collate(key: BatchKey, images: Tensor, flips: list[bool], labels: np.ndarray) -> Batch:
    """Return the batch of a key from its images (uint8 N H W C) and the labels of all images of the reader."""
    return Batch(
        images.permute(0, 3, 1, 2),
        torch.from_numpy(labels[key.indices].astype(np.int64)),  # A reader may have labels of a smaller type.
        torch.tensor(flips),
        torch.from_numpy(key.indices.copy()),
        key.step,
        key.replica,
    )


class CroppedImage(NamedTuple):
    """A crop (uint8 H W 3), its position in the batch, and the bad image that the crop replaces, if any."""

    position: int
    pixels: np.ndarray
    replaced: ReplacedImage | None


class CropReader:
    """Reads and decodes the crops of a micro-batch.

    With `substitutes`, another image of the class replaces a bad image. Otherwise a bad image raises DataError.
    """

    def __init__(
        self, reader: Reader, *, seed: int, max_pixels: int, substitutes: bool = False, fast: bool = HAS_NVIMGCODEC
    ) -> None:
        self._reader = reader
        self._seed = seed
        self._max_pixels = max_pixels
        self._substitutes = substitutes
        self._fast = fast
        self._decoder: RegionDecoder | None = None

    def read(self, key: BatchKey, choose: Choose) -> Iterator[CroppedImage]:
        """Yield the crops of a micro-batch. `choose` gets the position in the batch, width and height of an image."""
        if self._decoder is None:
            # Opened late: this object crosses a fork, and a decoder would not survive a fork.
            self._decoder = open_decoder(self._max_pixels, self._fast)
        addresses = key.addresses()
        for start in range(0, len(addresses), _DECODED_TOGETHER):
            part = addresses[start : start + _DECODED_TOGETHER]
            results = self._decode([index for _, index, _ in part], lambda n, w, h, s=start: choose(s + n, w, h))
            for number, (address, result) in enumerate(zip(part, results, strict=True)):
                if isinstance(result, DataError):
                    yield self._replace(start + number, address, result, choose)
                else:
                    yield CroppedImage(start + number, result, None)

    def _decode(self, indices: list[int], choose: Choose) -> list[np.ndarray | DataError]:
        assert self._decoder is not None
        results: list[np.ndarray | DataError] = []
        encoded, read = [], []
        for number, index in enumerate(indices):
            set_current_images([index])
            try:
                encoded.append(Encoded(self._reader.read(index), partial(self._reader.name, index)))
                read.append(number)
            except DataError as error:
                results.append(error)
        set_current_images(indices)
        decoded = self._decoder(encoded, lambda n, w, h: choose(read[n], w, h))
        for number, result in zip(read, decoded, strict=True):
            results.insert(number, result)
        return results

    def _replace(self, position: int, address: tuple[int, int, int], error: DataError, choose: Choose) -> CroppedImage:
        if not self._substitutes:
            raise DataError(f"{error}, {ADVICE}")
        for index in candidates(self._reader.labels, self._seed, address):
            (result,) = self._decode([index], lambda _, w, h: choose(position, w, h))
            if not isinstance(result, DataError):
                return CroppedImage(position, result, ReplacedImage(address[1], str(error), self._reader.name(index)))
        raise DataError(f"{error}; no image of the class could be used as a replacement")
