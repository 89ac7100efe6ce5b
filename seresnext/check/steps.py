"""Real training steps of a recipe on noise, without files and compilation, and the memory that steps need."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from seresnext.data import pipeline
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.errors import out_of_memory
from seresnext.metrics.console import Console
from seresnext.recipe.schema import Recipe
from seresnext.run.assemble import Run
from seresnext.run.dry_run import Spread, peak_memory

_RATE = 1e-6  # A small learning rate: many steps on noise must not end in NaN.
_USABLE = 0.9  # The share of the free memory that a step may use: fragments and the loader need some, too.


def training_data(recipe: Recipe, **changes: object) -> Recipe:
    """Return a recipe whose training images always have the largest size, with more changes of `data`."""
    section = recipe.data.progressive
    size = (section and section.max_size) or recipe.data.image_size
    return recipe.changed(data={"image_size": size, "progressive": None, **changes})


class Steps:
    """Training steps of a recipe with `accumulation` micro-batches on each rank, of any number of images."""

    def __init__(self, recipe: Recipe, world: World, accumulation: int = 1) -> None:
        replicas = accumulation * world.size
        recipe = training_data(recipe, format="synthetic", synthetic_images=2 * replicas, shuffle_shards=None).changed(
            model={"weights": None, "frozen": recipe.model.never_trained, "frozen_until": None},
            mix={"off_after": None},
            batch={"global_size": 2 * replicas, "micro_size": 2},
            loss={"class_weights": None},
            runtime={"compile": False},
        )
        # Lengths and schedule are the defaults, which fit any number of images.
        sections = {name: getattr(recipe, name) for name in ("model", "data", "mix", "batch", "optimizer", "loss")}
        synthetic = Recipe(**sections, ema=recipe.ema, runtime=recipe.runtime)
        self.run = Run(synthetic, None, world, Console(enabled=False))
        self._world = world

    def take(self, micro: int) -> float:
        """Take a step with micro-batches of so many images. Return the seconds until the result is on the host."""
        recipe = self.run.recipe.changed(batch={"micro_size": micro})
        images, labels = pipeline.stand_in_batch(recipe, self._world.device)
        images.normal_()
        step, started = self.run.step, time.perf_counter()
        batches = (DeviceBatch(images, labels, 0, replica, 0.0) for replica in step.own_replicas)
        step(batches, step=0, lr=_RATE, stop=False).result()
        return time.perf_counter() - started

    def repeat(self, micro: int, seconds: float) -> Spread:
        """Return the seconds of 3 to 20 steps, after a step that warms up. All ranks take equally many."""
        first = self._world.broadcast(self.take(micro))
        return Spread.of([self.take(micro) for _ in range(min(max(int(seconds / first) - 1, 3), 20))])

    def use(self, micro: int) -> Use | None:
        """Take a step and return the memory that the step used, or None if the memory is too small."""
        device = self._world.device
        _reset_peak(device)
        try:
            if device.type == "cuda":
                self.take(micro)  # cuDNN tries its kernels in the first step of a size.
            return Use(micro, self.take(micro), _peak(device))
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error) is None:
                raise
            self.run.optimizer.zero_grad()
            return None

    def uses(self, wanted: int, capacity: int, seconds: float) -> MemoryUse:
        """Take steps of growing size up to the wanted one. The next one must fit the memory, and after two the time."""
        deadline = time.monotonic() + seconds
        micro = min(wanted, 2 if self._world.device.type == "cpu" else max(2, wanted // 4))
        found = MemoryUse((), capacity)
        while use := self.use(micro):
            found = MemoryUse((*found.uses, use), capacity)
            micro = min(2 * micro, wanted)
            is_late = time.monotonic() + use.seconds * micro / use.micro > deadline
            if micro == use.micro or (len(found.uses) > 1 and (is_late or not found.fits(micro))):
                break
        return found

    def largest(self, found: MemoryUse, sizes: Sequence[int]) -> int | None:
        """Return the largest of the sizes that fits. On a GPU, a real step confirms the prediction."""
        sizes = sorted(filter(found.fits, sizes), reverse=True)
        measured = {use.micro for use in found.uses}
        is_predicted = self._world.device.type == "cpu"  # A CPU swaps or kills, and a large step takes minutes.
        return next((size for size in sizes if is_predicted or size in measured or self.use(size)), None)


class Use(NamedTuple):
    """The seconds and the peak of bytes of a training step with micro-batches of `micro` images."""

    micro: int
    seconds: float
    bytes: int


class MemoryUse(NamedTuple):
    """The steps that were measured, in growing size, and the bytes that the process may use."""

    uses: tuple[Use, ...]
    capacity: int

    def predict(self, micro: int) -> float:
        """Return the bytes of a step of another size, on the line through the two largest steps."""
        (before, last) = (Use(0, 0, 0), *self.uses)[-2:]
        return last.bytes + max(last.bytes - before.bytes, 0) / (last.micro - before.micro) * (micro - last.micro)

    def fits(self, micro: int) -> bool:
        """Return whether a step of this size leaves a reserve."""
        return bool(self.uses) and self.predict(micro) <= _USABLE * self.capacity


def free_memory(device: torch.device, sharing: int, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may use: of its GPU, or of the host, which `sharing` processes share.

    The limit of a container counts, without the caches that the kernel can drop.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = 1024 * _number(Path("/proc/meminfo"), "MemAvailable:")
    with suppress(OSError, ValueError):  # A container without a limit has the word `max`.
        used = int((cgroup / "memory.current").read_text()) - _number(cgroup / "memory.stat", "inactive_file")
        free = min(free, int((cgroup / "memory.max").read_text()) - used)
    return max(free, 0) // sharing + 1024 * _number(Path("/proc/self/status"), "VmRSS:")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Memory that malloc keeps would hide what a step needs.
    with suppress(AttributeError):  # Only glibc has the function.
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Some containers forbid this. The peak then counts from the start of the process.
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def _peak(device: torch.device) -> int:
    since_reset = 0 if device.type == "cuda" else 1024 * _number(Path("/proc/self/status"), "VmHWM:")
    return since_reset or peak_memory(device)  # Some containers do not show the peak in /proc.


def _number(file: Path, name: str) -> int:
    """Return the number behind a name in a file of the kernel; 0 if the name is missing."""
    rows = (line.split() for line in file.read_text().splitlines())
    return next((int(row[1]) for row in rows if row[0] == name), 0)
