"""Worker processes that make batches from keys, in the order of the keys, for any number of workers."""

import errno
import gc
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from seresnext.data.augment.crop import ImageSizeSchedule
from seresnext.data.batches import Batch, BatchSource
from seresnext.data.order import BatchKey, Order
from seresnext.errors import DataError, Failure, listed
from seresnext.process.signals import FORK, block_stop_signals, init_worker

# Batches that each worker makes ahead of use.
_PREFETCH = 2
_LISTED = 64  # images that a worker may have been reading, in a message


def train_keys(
    order: Order, replicas: range, start_step: int, total_steps: int, sizes: ImageSizeSchedule | None = None
) -> Iterator[BatchKey]:
    """Yield the micro-batches of a rank's logical replicas from a step on. The step is the whole position of a run.

    `sizes` gives the image size of each step; without `sizes` the source decides.
    """
    for step in range(start_step, total_steps):
        image_size = sizes.size_at(step) if sizes else None
        for replica in replicas:
            yield order.micro_batch(step, replica)._replace(image_size=image_size)


def evaluation_keys(num_images: int, batch_size: int, rank: int, world_size: int) -> Iterator[BatchKey]:
    """Yield a rank's batches of a split. The batches are equal for every world size, and the ranks take turns."""
    starts = range(0, num_images, batch_size)
    for number in range(rank, len(starts), world_size):
        first = starts[number]
        yield BatchKey(number, 0, 0, np.arange(first, min(first + batch_size, num_images)))


@contextmanager
def open_batches(
    source: BatchSource, keys: Iterable[BatchKey], *, workers: int, timeout: int, pin_memory: bool
) -> Iterator[Iterator[Batch]]:
    """Yield an iterator over the batches of the keys, in order, made by `workers` processes (0: by this process).

    The iterator raises DataError for an image that cannot be used. The block raises DataError for a worker that died,
    or that did not answer for `timeout` seconds. Workers end with the block. With `pin_memory`, for a GPU, images
    travel in torch's shared memory; without, through pipes.
    """
    pending: deque[tuple[int, BatchKey]] = deque()
    with warnings.catch_warnings():
        # Torch counts the cores of this machine; data.workers was written for the machine of the recipe.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            _BatchDataset(source, shares_memory=pin_memory),
            batch_size=None,
            collate_fn=lambda batch: batch,
            sampler=_recorded(keys, pending),  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            pin_memory=pin_memory,
            timeout=timeout if workers else 0,
            worker_init_fn=_begin_worker if workers else None,
            # Forked workers share the reader's arrays and start at once. A fork server would import torch in each
            # worker and send 1.28 million names. Workers never touch CUDA, which does not survive a fork.
            multiprocessing_context=FORK if workers else None,
            # A separate generator: DataLoader would draw from the default one, which dropout uses.
            generator=torch.Generator(),
        )
        try:
            with block_stop_signals():
                iterator = iter(loader)
        except OSError as error:  # The semaphores of the workers lie in shared memory.
            if error.errno == errno.ENOSPC:
                raise _no_shared_memory(error) from None
            raise
    processes = getattr(iterator, "_workers", [])
    for process in processes:
        # Torch ends a worker that is stuck by SIGTERM, which our workers ignore.
        process.terminate = process.kill
    try:
        yield _received(iterator, pending)
    except (RuntimeError, OSError, EOFError) as error:
        # Torch raises a worker's death in the main thread, also outside of the iterator.
        if not _is_loss_of_own_worker(error, processes):
            raise
        # Torch gives the keys to the workers in turn. A worker that hangs makes the batch that the trainer waits for.
        dead = {number for number, process in enumerate(processes) if not process.is_alive()}
        lost = [each for each in pending if each[0] % workers in dead] if dead else list(pending)[:1]
        _kill(iterator, processes)
        images = [source.reader.name(image) for _, key in lost for image in key.indices.tolist()]
        names = ", ".join(listed(images, _LISTED)) or "none"
        raise DataError(_explain_loss(error, pending, names)) from None
    finally:
        # The workers end with the iterator, and a frame of a traceback could keep the iterator alive.
        if processes:
            iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]


class _BatchDataset(Dataset["Batch | Failure"]):
    """Batches by key. A Failure is returned: torch would turn a raised one into the text of a traceback.

    A batch of a worker has arrays for tensors, and images N H W C. Arrays go through a pipe. Torch receives a tensor by
    a handshake with the worker: each takes time, and torch would wait without end for a frozen worker. For a GPU, the
    images alone are a tensor, in shared memory.
    """

    def __init__(self, source: BatchSource, *, shares_memory: bool) -> None:
        self._source = source
        self._shares_memory = shares_memory

    def __getitem__(self, key: BatchKey) -> Batch | Failure:
        try:
            batch = self._source.make(key)
        except Failure as failure:
            return failure
        if get_worker_info() is None:
            return batch
        images: Any = batch.images.permute(0, 2, 3, 1).numpy()
        if self._shares_memory:
            try:
                # Torch would move the images in a thread that only prints an error, and the batch would never arrive.
                images = batch.images.share_memory_()
            except (OSError, RuntimeError) as error:
                return _no_shared_memory(error)
        packed: list[Any] = [value.numpy() if isinstance(value, Tensor) else value for value in batch]
        return Batch(*packed)._replace(images=images)


def _unpack(batch: Batch) -> Batch:
    fields: list[Any] = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in batch]
    unpacked = Batch(*fields)
    is_piped = isinstance(batch.images, np.ndarray)
    return unpacked._replace(images=unpacked.images.permute(0, 3, 1, 2)) if is_piped else unpacked


def _recorded(keys: Iterable[BatchKey], pending: deque[tuple[int, BatchKey]]) -> Iterator[BatchKey]:
    """Yield the keys, and add each with its number to the pending ones."""
    for number, key in enumerate(keys):
        pending.append((number, key))
        yield key


def _received(iterator: Iterator[Batch | Failure], pending: deque[Any]) -> Iterator[Batch]:
    for result in iterator:
        pending.popleft()
        if isinstance(result, Failure):
            raise result
        yield _unpack(result)


def _is_loss_of_own_worker(error: Exception, processes: list[BaseProcess]) -> bool:
    """Return whether torch reports that a worker of this block died or hangs.

    A worker can also pass on an exception, and training workers can die during the block of a validation.
    """
    text = str(error)
    if isinstance(error, RuntimeError):
        is_loss = text.startswith(("DataLoader worker", "DataLoader timed out"))
    else:  # The thread that pins batches finds the connection of a dead worker closed.
        is_loss = "in pin memory thread" in text
    named = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text)
    own = {process.pid for process in processes}
    return is_loss and (named is None or any(int(pid) in own for pid in named[1].split(",")))


def _explain_loss(error: Exception, pending: deque[tuple[int, BatchKey]], names: str) -> str:
    batch = f"the batch of step {pending[0][1].step}, replica {pending[0][1].replica}" if pending else "the end"
    if "timed out" in str(error):
        return (
            f"no loader worker answered while the trainer waited for {batch}: {error} (runtime.loader_timeout). The "
            f"worker had to read these images: {names}. Check the disk, the file system or the server of the images"
        )
    return (
        f"a loader worker died while the trainer waited for {batch}: {str(error).strip(' .')}. The worker had to read "
        f"these images: {names}. After a kill for memory, lower data.workers; after a bus error (/dev/shm is full), "
        "give the container more shared memory (docker run --shm-size=16g)"
    )


def _no_shared_memory(error: Exception) -> DataError:
    return DataError(
        f"a loader worker has no shared memory for a batch ({error}); give the container more "
        "(docker run --shm-size=16g), or lower data.workers or batch.micro_size"
    )


def _kill(iterator: Iterator[Any], processes: list[BaseProcess]) -> None:
    """Kill workers that may hang. The thread that pins batches may wait for a worker, and the iterator for the thread.

    Torch must forget the workers first, because torch would raise an error about their death.
    """
    signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
    iterator._worker_pids_set = False  # pyright: ignore[reportAttributeAccessIssue]
    for process in processes:
        process.kill()


def _begin_worker(number: int) -> None:
    init_worker()
    # Objects from before the fork are no garbage: a scan costs time, and each touched object copies a page.
    gc.freeze()
