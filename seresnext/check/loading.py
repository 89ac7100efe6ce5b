"""The images a second of the training loader alone, and photographs from memory for a check without data."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image

from seresnext.check.steps import training_data
from seresnext.data import pipeline
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.order import Order
from seresnext.data.readers import Reader
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.recipe.schema import Recipe
from seresnext.run.estimate import Spread

_BATCH = 16  # images without a GPU: slow workers deliver soon. For a GPU, real batches must fit the shared memory.
_WARM_UP_SECONDS, _WINDOWS, _WINDOW_SECONDS = 6.0, 5, 1.5


class Photographs(SyntheticReader):
    """Synthetic JPEGs with the usual size of an image of ImageNet, 500 x 375 pixels and 110 KB, from memory."""

    def __init__(self, num_images: int, num_classes: int) -> None:
        super().__init__(num_images, num_classes)
        self._files = [_photograph(number) for number in range(16)]

    def read(self, index: int) -> bytes:
        """Return a JPEG. A few files stand for all images."""
        return self._files[index % len(self._files)]


def _photograph(number: int) -> bytes:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, 12, (375, 500, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure_loader(recipe: Recipe, reader: Reader, world: World) -> Spread:
    """Return the images/s of this rank's loader while all ranks load. Raises DataError if a class has no good image."""
    format = "folder" if recipe.data.format == "synthetic" else recipe.data.format
    recipe = training_data(recipe, format=format, on_error="substitute")
    on_gpu, workers = world.device.type == "cuda", recipe.data.workers
    micro = max(1, min(recipe.batch.micro_size if on_gpu else _BATCH, len(reader) // world.size))
    order = Order(len(reader), micro * world.size, micro, recipe.runtime.seed)
    source, own = pipeline.train_source(recipe, reader), range(world.rank, world.rank + 1)
    options = {"workers": workers, "timeout": 60, "pin_memory": on_gpu}
    with reader.prefetch(train_keys(order, own, 0, 10**9)) as keys, open_batches(source, keys, **options) as batches:
        started = time.monotonic()
        for _ in range(3 * max(workers, 1)):  # The workers start together, and deliver together at first.
            next(batches)
            if time.monotonic() - started > _WARM_UP_SECONDS:
                break
        rates = []
        for _ in range(_WINDOWS):
            images, started = 0, time.monotonic()
            while not images or time.monotonic() - started < _WINDOW_SECONDS:
                images += len(next(batches).labels)
            rates.append(images / (time.monotonic() - started))
    return Spread.of(rates)
