"""Worker processes that turn keys into whole batches, in order, whatever their number."""

from __future__ import annotations

import gc
import math
import signal
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from seresnext.data import slots
from seresnext.data.augment import Crop, EvaluationTransform, TrainTransform
from seresnext.data.crops import Crops
from seresnext.data.decode import decode
from seresnext.data.erase import Erasing
from seresnext.data.order import BatchKey, Order
from seresnext.data.policies import Retouch
from seresnext.data.progressive import Ramp
from seresnext.data.readers import Reader
from seresnext.data.regions import HAS_NVIMGCODEC
from seresnext.data.resize import resize_into
from seresnext.data.slots import Slots
from seresnext.data.substitute import Substitution
from seresnext.data.whereabouts import Whereabouts, note_batch, note_images
from seresnext.distributed.launch import end_with_parent
from seresnext.errors import DataError, Failure
from seresnext.randomness import rng_at

# Batches that a worker is asked for ahead of their use.
_PREFETCH = 2
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Batch(NamedTuple):
    """A batch on the host.

    `images` are uint8 N C H W in channels-last memory, `labels` int64 N, `flips` bool N (the device mirrors these),
    `indices` int64 N. `step` and `replica` say whose micro-batch it is; for evaluation, `step` counts batches. `boxes`
    are what the device erases: int64 N 4 of top, left, height, width in the mirrored image, or None. `substitutions`
    tell of bad images, which others stand in for under their index and label.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor
    indices: Tensor
    step: int
    replica: int
    boxes: Tensor | None = None
    substitutions: tuple[Substitution, ...] = ()


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
        transform: TrainTransform,
        *,
        seed: int,
        max_pixels: int,
        retouch: Retouch | None = None,
        erasing: Erasing | None = None,
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


class EvaluationImages:
    """Evaluation batches: decoded, resized and cropped by Pillow."""

    def __init__(self, reader: Reader, transform: EvaluationTransform, *, max_pixels: int) -> None:
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
        """The batch of a key. Raises DataError naming an image that cannot be used."""
        images = _allocate(len(key.indices), self._transform.image_size)
        for image, index in zip(images, key.indices.tolist(), strict=True):
            note_images([index])
            image.copy_(self._transform(decode(self._reader.read(index), self.name(index), self._max_pixels)))
        return collate(key, images, [False] * len(images), self._reader.labels)


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
        raise _no_shared_memory(error) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)  # pyright: ignore[reportArgumentType]


def _no_shared_memory(error: Exception) -> DataError:
    return DataError(
        f"a loader worker has no shared memory for a batch ({error}); give the container more "
        "(docker run --shm-size=16g), or lower data.workers or batch.micro_size"
    )


def collate(key: BatchKey, images: Tensor, flips: list[bool], labels: np.ndarray) -> Batch:
    """The batch of a key: `images` are uint8 N H W C, `labels` those of all images of the reader."""
    return Batch(
        images.permute(0, 3, 1, 2),
        torch.from_numpy(labels[key.indices]),
        torch.tensor(flips),
        torch.from_numpy(key.indices.copy()),
        key.step,
        key.replica,
    )


def train_keys(
    order: Order, replicas: range, start_step: int, total_steps: int, ramp: Ramp | None = None
) -> Iterator[BatchKey]:
    """The micro-batches of a rank's logical replicas, from a step on: the position of a run is its step.

    Their images have the size that the ramp has at their step, or that of the source.
    """
    for step in range(start_step, total_steps):
        image_size = ramp.size_at(step) if ramp else None
        for replica in replicas:
            yield order.micro_batch(step, replica)._replace(image_size=image_size)


def evaluation_keys(num_images: int, batch_size: int, rank: int, world_size: int) -> Iterator[BatchKey]:
    """A rank's share of a split. Batches are cut alike at every world size and dealt round; the last may be short."""
    starts = range(0, num_images, batch_size)
    for number in range(rank, len(starts), world_size):
        first = starts[number]
        yield BatchKey(number, 0, 0, np.arange(first, min(first + batch_size, num_images)))


class _InSlot(NamedTuple):
    """A batch whose images lie in a slot, of which the other side has to be told the shape only."""

    shape: tuple[int, ...]
    batch: Batch


class _Keyed(Dataset["Batch | Failure | _InSlot"]):
    """Batches by key. A failure is handed over as a value: raised, torch would wrap it into a traceback's text."""

    def __init__(self, source: BatchSource, places: Slots | None) -> None:
        self._source = source
        self._places = places

    def __getitem__(self, numbered: tuple[int, BatchKey]) -> Batch | Failure | _InSlot:
        number, key = numbered
        if self._places:
            self._places.enter(number)
        note_batch(key)
        try:
            batch = self._source.make(key)
        except Failure as failure:
            return failure
        if get_worker_info() is None:
            return batch
        images = None
        if slots.is_own(batch.images):
            images, batch = batch.images, batch._replace(images=torch.empty(0))
        try:
            # Torch would do so in a thread that only prints what goes wrong, and the batch would never arrive.
            for tensor in filter(torch.is_tensor, batch):
                tensor.share_memory_()
        except (OSError, RuntimeError) as error:
            return _no_shared_memory(error)
        return batch if images is None else _InSlot(tuple(images.permute(0, 2, 3, 1).shape), batch)


def _as_it_is(made: object) -> object:
    return made


@contextmanager
def open_batches(
    source: BatchSource, keys: Iterable[BatchKey], *, workers: int, timeout: int, pin_memory: bool
) -> Iterator[Iterator[Batch]]:
    """Batches of the keys, in their order, made by `workers` processes (0: by this one) a few ahead of their use.

    The iterator raises DataError for an image that cannot be used, and the block for a worker that died, or did not
    answer for `timeout` seconds. Workers end with the block. The images of a batch are overwritten when the second
    batch after it is asked for.
    """
    awaited: deque[BatchKey] = deque()
    whereabouts = Whereabouts(workers)
    keys = iter(keys)
    places = None
    if workers and sys.platform == "linux" and not pin_memory and (first := next(keys, None)):
        keys = chain([first], keys)
        # So many are asked for ahead of the one that is handed out, and the one before that may still be in use.
        places = Slots(_PREFETCH * workers + 2, len(first.indices) * source.image_bytes)
    with warnings.catch_warnings():
        # Torch counts the cores of this machine; the recipe's number is for the machine it was written for.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            _Keyed(source, places),
            batch_size=None,
            collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]
            sampler=enumerate(_noted(keys, awaited)),  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            pin_memory=pin_memory,
            timeout=timeout if workers else 0,
            worker_init_fn=partial(_begin_worker, whereabouts) if workers else None,
            # Forked workers share the reader's arrays and start at once; a fork server would import torch anew in each
            # and be sent 1.28 million names. They never touch CUDA, which does not survive a fork.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # A generator of its own: the default one would be drawn from, and dropout with it.
            generator=torch.Generator(),
        )
        iterator = iter(loader)
    processes = getattr(iterator, "_workers", [])
    for process in processes:
        # Torch ends a worker that is stuck by SIGTERM, which ours ignore.
        process.terminate = process.kill
    try:
        yield _unwrapped(iterator, awaited, places)
    except (RuntimeError, OSError, EOFError) as error:
        # Not only from the iterator: torch raises a worker's death wherever the main thread is.
        if not _is_loss_of_worker(error):
            raise
        hangs = "timed out" in str(error)
        if hangs:
            images = whereabouts.images_for(awaited[0].step, awaited[0].replica) if awaited else []
        else:
            dead = [number for number, process in enumerate(processes) if not process.is_alive()]
            images = [image for number in dead for image in whereabouts.images_of(number)]
        in_hand = ", ".join(source.name(image) for image in images) or "none"
        raise DataError(_explain_loss(error, awaited, in_hand)) from None
    finally:
        # The iterator's end is what ends its workers, and a frame of a traceback could keep it alive.
        if processes:
            iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]


def _noted(keys: Iterable[BatchKey], awaited: deque[BatchKey]) -> Iterator[BatchKey]:
    """The keys, each noted as awaited when it is handed out."""
    for key in keys:
        awaited.append(key)
        yield key


def _unwrapped(
    iterator: Iterator[Batch | Failure | _InSlot], awaited: deque[BatchKey], places: Slots | None
) -> Iterator[Batch]:
    for number, made in enumerate(iterator):
        awaited.popleft()
        if isinstance(made, Failure):
            raise made
        if isinstance(made, _InSlot):
            assert places
            images = places.memory(number)[: math.prod(made.shape)].view(made.shape)
            made = made.batch._replace(images=images.permute(0, 3, 1, 2))
        yield made


def _is_loss_of_worker(error: Exception) -> bool:
    """Whether this is what torch says of a worker that died or hung, not an exception that a worker passed on."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker", "DataLoader timed out"))
    # The thread that pins batches finds the connection of a worker that died closed.
    return "in pin memory thread" in str(error)


def _explain_loss(error: Exception, awaited: deque[BatchKey], in_hand: str) -> str:
    where = f"the batch of step {awaited[0].step}, replica {awaited[0].replica}" if awaited else "the end"
    if "timed out" in str(error):
        return (
            f"no loader worker answered while {where} was awaited: {error} (runtime.loader_timeout). Images that its "
            f"worker has in hand: {in_hand}. Is the disk or the network file system that holds them hanging?"
        )
    return (
        f"a loader worker died while {where} was awaited: {str(error).strip(' .')}. Images that it had in hand: "
        f"{in_hand}. If it was killed for memory, lower data.workers; a bus error means that /dev/shm is full: give "
        "the container more (docker run --shm-size=16g)"
    )


def _begin_worker(whereabouts: Whereabouts, number: int) -> None:
    """Signals meant for the trainer reach its workers too; it needs their batches until it has saved."""
    for name in _IGNORED_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    whereabouts.enter(number)
    # What was imported before the fork is no garbage: looking through it costs time, and touching it copies its pages.
    gc.freeze()
