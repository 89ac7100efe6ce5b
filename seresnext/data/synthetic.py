"""Synthetic images for benchmarks and checks: no files, and the same pixels in each run."""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image

from seresnext.data.batches import Batch, collate
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.randomness import hash_at


class SyntheticReader(Reader):
    """A split of numbered images without files. A few synthetic photographs stand for all images.

    `SyntheticImages` makes batches without a decode.
    """

    has_local_files = False

    def __init__(self, num_images: int, num_classes: int) -> None:
        self.classes = tuple(f"class_{label:04}" for label in range(num_classes))
        self.labels = np.arange(num_images) % num_classes
        self.fingerprint = f"synthetic-{num_images}-{num_classes}"

    def read(self, index: int) -> bytes:
        """Return a JPEG."""
        return synthetic_photograph(index % 16)

    def name(self, index: int) -> str:
        return f"synthetic/{index}"


@cache
def synthetic_photograph(number: int) -> bytes:
    """Return a JPEG with the usual size and detail of an image of ImageNet: 500 x 375 pixels and 110 KB."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, 12, (375, 500, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclass(eq=False)
class SyntheticImages:
    """Batches of noise. Each image is a piece of one block of noise, so an image costs a copy."""

    reader: Reader
    image_size: int
    channels: int
    seed: int

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        length = 2 * self.image_size**2 * self.channels
        self._noise = torch.randint(256, (length,), dtype=torch.uint8, generator=generator)

    def make(self, key: BatchKey) -> Batch:
        """Return the batch of a key."""
        size = key.image_size or self.image_size
        pixels = size * size * self.channels
        starts = [hash_at(self.seed, "synthetic", index) % pixels for index in key.indices.tolist()]
        images = torch.stack([self._noise[start : start + pixels].view(size, size, self.channels) for start in starts])
        return collate(key, images, [False] * len(starts), self.reader.labels)
