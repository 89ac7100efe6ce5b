"""Batches on the host: training images, cropped and augmented, and evaluation images."""

import time
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from seresnext.data.augment.crop import ResizeCenterCrop, random_resized_crop, resize_into
from seresnext.data.augment.erase import draw_box
from seresnext.data.augment.policies import retouch
from seresnext.data.decode.pillow import Decoding
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Choose, Crop, Encoded, RegionDecoder
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.substitute import ADVICE, ReplacedImage, candidates
from seresnext.errors import DataError
from seresnext.randomness import rng_at
from seresnext.recipe.schema import AugmentSection

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
    """Makes the batch of a key, in a loader worker or in the trainer's process. `reader` names images for messages."""

    reader: Reader

    def make(self, key: BatchKey) -> Batch: ...


@dataclass(eq=False)
class TrainImages:
    """Training batches: each image is cropped and augmented by draws at the address of the image.

    With `substitutes`, another image of the class replaces a bad image. `fast`: decode with nvimgcodec.
    """

    reader: Reader
    augment: AugmentSection
    image_size: int
    _: KW_ONLY
    seed: int
    decoding: Decoding
    substitutes: bool = False
    fast: bool = HAS_NVIMGCODEC

    @cached_property
    def _decoder(self) -> RegionDecoder:
        # Opened late: this object crosses a fork, and a decoder would not survive a fork.
        return RegionDecoder(self.decoding, self.fast)

    def make(self, key: BatchKey) -> Batch:
        """Return the batch of a key. Raises DataError naming an image that cannot be used."""
        addresses = key.addresses()
        flips = [False] * len(addresses)

        def choose(position: int, width: int, height: int) -> Crop:
            crop = random_resized_crop(self.augment, width, height, rng_at(self.seed, "augment", *addresses[position]))
            flips[position] = crop.flip
            return crop

        augment = self.augment
        size = key.image_size or self.image_size
        images = torch.empty((len(addresses), size, size, 3), dtype=torch.uint8)
        replaced = []
        for start in range(0, len(addresses), _DECODED_TOGETHER):
            positions = range(len(addresses))[start : start + _DECODED_TOGETHER]
            crops = self._decode({position: addresses[position][1] for position in positions}, choose)
            for position in positions:
                pixels = crops[position]
                if isinstance(pixels, DataError):
                    pixels, replacement = self._replace(position, addresses[position], pixels, choose)
                    replaced.append(replacement)
                image = images[position]
                resize_into(image, pixels, augment.interpolation)
                if augment.policy or augment.color_jitter:
                    draws = rng_at(self.seed, "retouch", *addresses[position])
                    image.copy_(retouch(augment, image, flips[position], draws))
                    flips[position] = False
        batch = collate(key, images, flips, self.reader.labels)._replace(replaced=tuple(replaced))
        if augment.erasing is None:
            return batch
        boxes = [draw_box(augment.erasing, size, size, rng_at(self.seed, "erase", *address)) for address in addresses]
        return batch._replace(boxes=torch.tensor(boxes))

    def _decode(self, indices: dict[int, int], choose: Choose) -> dict[int, np.ndarray | DataError]:
        """Return the crop (uint8 H W 3) or the error of each image. The keys are positions in the batch.

        Raises DataError when the storage does not answer.
        """
        results: dict[int, np.ndarray | DataError] = {}
        encoded = {}
        for position, index in indices.items():
            started = time.monotonic()
            try:
                encoded[position] = Encoded(self.reader.read(index), partial(self.reader.name, index))
            except DataError as error:
                if time.monotonic() - started > _SLOW_FAILURE:
                    raise
                results[position] = error
        read = list(encoded)
        decoded = self._decoder(list(encoded.values()), lambda n, width, height: choose(read[n], width, height))
        return results | dict(zip(read, decoded, strict=True))

    def _replace(
        self, position: int, address: tuple[int, int, int], error: DataError, choose: Choose
    ) -> tuple[np.ndarray, ReplacedImage]:
        if not self.substitutes:
            raise DataError(f"{error}, {ADVICE}")
        for index in candidates(self.reader.labels, self.seed, address):
            pixels = self._decode({position: index}, choose)[position]
            if not isinstance(pixels, DataError):
                return pixels, ReplacedImage(address[1], str(error), self.reader.name(index))
        raise DataError(f"{error}; no image of the class could be used as a replacement")


@dataclass(eq=False)
class EvaluationImages:
    """Evaluation batches: decoded, resized and cropped by Pillow."""

    reader: Reader
    transform: ResizeCenterCrop
    decoding: Decoding

    def make(self, key: BatchKey) -> Batch:
        """Return the batch of a key, with the images that cannot be used in `unreadable`.

        Raises DataError when the storage does not answer.
        """
        size = self.transform.image_size
        images = torch.empty((len(key.indices), size, size, 3), dtype=torch.uint8)
        unreadable = []
        for image, index in zip(images, key.indices.tolist(), strict=True):
            started = time.monotonic()
            try:
                data, name = self.reader.read(index), self.reader.name(index)
                image.copy_(self.transform.decode_and_crop(data, name, self.decoding))
            except DataError as error:
                if time.monotonic() - started > _SLOW_FAILURE:
                    raise
                image.zero_()
                unreadable.append((index, str(error)))
        batch = collate(key, images, [False] * len(images), self.reader.labels)
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
