"""Worker processes that turn keys into whole batches, in order, whatever their number."""

from __future__ import annotations

import errno
import gc
import math
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from seresnext.data.augment.progressive import ImageSizeSchedule
from seresnext.data.batches import Batch, BatchSource, no_shared_memory
from seresnext.data.loading import slots
from seresnext.data.loading.slots import Slots
from seresnext.data.loading.whereabouts import WorkerStatus, note_batch
from seresnext.data.order import BatchKey, Order
from seresnext.errors import DataError, Failure
from seresnext.process.fork import FORK
from seresnext.process.signals import block_stop_signals, init_worker

# Batches that a worker is asked for ahead of their use.
_PREFETCH = 2


def train_keys(
    order: Order, replicas: range, start_step: int, total_steps: int, ramp: ImageSizeSchedule | None = None
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


class _Packed(NamedTuple):
    """A batch on its way to the trainer: arrays, that go through a pipe, for tensors, and the images in a slot.

    The trainer would fetch tensors from the worker by a handshake, in which it waits without end for one that hangs.
    `shape` is that of the images in the slot, N H W 3; None if they did not fit and go through the pipe as well.
    """

    batch: Batch
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, batch: Batch) -> _Packed:
        images = batch.images.permute(0, 2, 3, 1)
        if not slots.is_own(images):
            return cls(_change(batch, Tensor, Tensor.numpy), None)
        rest = batch._replace(images=torch.empty(0))
        return cls(_change(rest, Tensor, Tensor.numpy), tuple(images.shape))

    def unpack(self, place: Tensor | None) -> Batch:
        batch = _change(self.batch, np.ndarray, torch.from_numpy)
        if self.shape is None:
            return batch
        assert place is not None
        images = place[: math.prod(self.shape)].view(self.shape)
        return batch._replace(images=images.permute(0, 3, 1, 2))


def _change(batch: Batch, kind: type, change: Callable[[Any], Any]) -> Batch:
    """The batch with `change` applied to the fields that are of a kind."""
    return batch._replace(**{name: change(value) for name, value in batch._asdict().items() if isinstance(value, kind)})


class _Keyed(Dataset["Batch | Failure | _Packed"]):
    """Batches by key. A failure is handed over as a value: raised, torch would wrap it into a traceback's text."""

    def __init__(self, source: BatchSource, places: Slots | None, *, packs: bool) -> None:
        self._source = source
        self._places = places
        self._packs = packs

    def __getitem__(self, numbered: tuple[int, BatchKey]) -> Batch | Failure | _Packed:
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
        if self._packs:
            return _Packed.of(batch)
        try:
            # Torch would do so in a thread that only prints what goes wrong, and the batch would never arrive.
            for tensor in filter(torch.is_tensor, batch):
                tensor.share_memory_()
        except (OSError, RuntimeError) as error:
            return no_shared_memory(error)
        return batch


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
    whereabouts = WorkerStatus(workers)
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
            _Keyed(source, places, packs=not pin_memory),
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
            multiprocessing_context=FORK if workers else None,
            # A generator of its own: the default one would be drawn from, and dropout with it.
            generator=torch.Generator(),
        )
        try:
            with block_stop_signals():
                iterator = iter(loader)
        except OSError as error:  # The workers' semaphores lie in shared memory, too.
            if error.errno == errno.ENOSPC:
                raise no_shared_memory(error) from None
            raise
    processes = getattr(iterator, "_workers", [])
    for process in processes:
        # Torch ends a worker that is stuck by SIGTERM, which ours ignore.
        process.terminate = process.kill
    try:
        yield _unwrapped(iterator, awaited, places)
    except (RuntimeError, OSError, EOFError) as error:
        # Not only from the iterator: torch raises a worker's death wherever the main thread is.
        if not _is_loss_of_worker(error) or _is_of_others(error, processes):
            raise
        hangs = "timed out" in str(error)
        if hangs:
            images = whereabouts.images_for(awaited[0].step, awaited[0].replica) if awaited else []
        else:
            dead = [number for number, process in enumerate(processes) if not process.is_alive()]
            images = [image for number in dead for image in whereabouts.images_of(number)]
        _kill(iterator, processes)
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
    iterator: Iterator[Batch | Failure | _Packed], awaited: deque[BatchKey], places: Slots | None
) -> Iterator[Batch]:
    for number, made in enumerate(iterator):
        awaited.popleft()
        if isinstance(made, Failure):
            raise made
        if isinstance(made, _Packed):
            made = made.unpack(places and places.memory(number))
        yield made


def _is_loss_of_worker(error: Exception) -> bool:
    """Whether this is what torch says of a worker that died or hung, not an exception that a worker passed on."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker", "DataLoader timed out"))
    # The thread that pins batches finds the connection of a worker that died closed.
    return "in pin memory thread" in str(error)


def _is_of_others(error: Exception, processes: list[BaseProcess]) -> bool:
    """Whether this is the death of workers that are all another block's: validation has its own beside training's."""
    named = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return bool(named) and not {int(pid) for pid in named[1].split(",")} & {process.pid for process in processes}


def _explain_loss(error: Exception, awaited: deque[BatchKey], in_hand: str) -> str:
    where = f"the batch of step {awaited[0].step}, replica {awaited[0].replica}" if awaited else "the end"
    if "timed out" in str(error):
        return (
            f"no loader worker answered while {where} was awaited: {error} (runtime.loader_timeout). Images that its "
            f"worker has in hand: {in_hand}. Is the disk, the file system or the server that holds them hanging?"
        )
    return (
        f"a loader worker died while {where} was awaited: {str(error).strip(' .')}. Images that it had in hand: "
        f"{in_hand}. If it was killed for memory, lower data.workers; a bus error means that /dev/shm is full: give "
        "the container more (docker run --shm-size=16g)"
    )


def _kill(iterator: Iterator[Any], processes: list[BaseProcess]) -> None:
    """End workers that may hang. A thread that pins batches may wait for one, and the iterator's end for the thread."""
    # Else torch would raise their death.
    signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
    iterator._worker_pids_set = False  # pyright: ignore[reportAttributeAccessIssue]
    for process in processes:
        process.kill()


def _begin_worker(whereabouts: WorkerStatus, number: int) -> None:
    init_worker()
    whereabouts.enter(number)
    # What was imported before the fork is no garbage: looking through it costs time, and touching it copies its pages.
    gc.freeze()
