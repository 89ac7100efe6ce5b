"""Measure the index of large datasets with synthetic data: no image is needed.

    python scripts/bench.py index --json FILE

Indices of ImageNet-1k (archives, image folder and shards) and of ImageNet-21k have synthetic offsets and names
(`made_up.py`). The archives are holes of the published size. The measured calls are those of a training. They run in a
forked process, like a loader worker, after the index was dropped from the page cache.
"""

import argparse
import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.made_up import class_names, write_archives, write_folder, write_photographs, write_shards

from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.order import Order
from seresnext.data.pipeline import batch_source
from seresnext.data.readers import Reader
from seresnext.data.readers.imagenet import TRAIN
from seresnext.randomness import permutation_at
from seresnext.recipe.load import load_recipe

MB = 1e6
# Limits of the figures.
_MEMORY = {"worker_growth_mb": 10, "worker_private_mb": 10}
TARGETS = {
    "archives": {"open_ms": 100, "index_mb": 30, **_MEMORY},
    "folder": {"open_ms": 100, "index_mb": 64, **_MEMORY},
    "shards": {"open_ms": 100, "index_mb": 30, **_MEMORY},
    "imagenet21k": _MEMORY,
    "loader": {"worker_growth_mb": 10},
    "order": {"cold_seconds": 1.0},
}
_KINDS = {"growth": "RssAnon", "private": "Private_Dirty"}
_GLOBAL_SIZE, _MICRO_SIZE = 1024, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py index`."""
    parser.add_argument("--images", type=int, default=1_281_167, metavar="N", help="images of the smaller indices")
    parser.add_argument("--large", type=int, default=14_197_122, metavar="N", help="images of the largest one")
    parser.add_argument("--samples", type=int, default=20_000, metavar="N", help="images that a worker reads")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return all figures with the limits."""
    samples: int = arguments.samples
    with tempfile.TemporaryDirectory(prefix="seresnext-index-") as folder:
        root = Path(folder)
        found = {
            "archives": _reader_figures(write_archives(root / "a", arguments.images, 1000), samples),
            "folder": _reader_figures(write_folder(root / "f", arguments.images), samples),
            "shards": _reader_figures(write_shards(root / "s", arguments.images), samples),
            "imagenet21k": _reader_figures(write_archives(root / "l", arguments.large, 21_841), samples),
            "loader": _loader_figures(root / "d", arguments.images, samples),
            "order": {**_order_figures(arguments.images), "large": _order_figures(arguments.large)},
            "build": _build_figures(root / "b", arguments.images),
        }
    misses = [
        f"{part}.{name}: {found[part][name]:.3g}, limit {limit}"
        for part, limits in TARGETS.items()
        for name, limit in limits.items()
        if not found[part][name] < limit
    ]
    shown = {**found, "order.large": found["order"]["large"]}
    for part, figures in shown.items():
        for name, value in figures.items():
            if not isinstance(value, dict):
                limit = TARGETS.get(part, {}).get(name)
                print(f"{part + '.' + name:34} {value:>14,.6g}{f'   (limit: {limit})' if limit else ''}")
    print("above the limit: " + "; ".join(misses) if misses else "all figures are below the limits")
    return {**found, "targets": TARGETS, "missed": misses, "images": arguments.images, "samples": samples}


def _reader_figures(written: tuple[Path, str, Path], samples: int) -> dict[str, float]:
    """Return figures of an index that a process opens, and of a worker that it forks."""
    root, format, path = written
    size = path.stat().st_size
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)

    def open_and_read() -> dict[str, float]:
        start = time.perf_counter()
        reader = open_reader(root, "train", format, root / "cache")
        opened = time.perf_counter() - start
        order = permutation_at(0, "order", 0, count=len(reader))
        use = reader.name if format == "folder" else reader.read
        worker = in_a_process(lambda: growth_of_worker(reader, use, order, samples))
        return {"open_ms": 1e3 * opened, **worker}

    figures = in_a_process(open_and_read)
    path.unlink()
    return {"index_mb": size / MB, **figures}


def growth_of_worker(reader: Reader, use: Callable[[int], object], order: np.ndarray, samples: int) -> dict[str, float]:
    """Return the memory by which this process grows while `use` reads `samples` images, and the time of an image."""

    def read(first: int, last: int) -> None:
        for index in order[first:last].tolist():
            use(index)
            int(reader.labels[index])

    warm = min(1000, len(order) // 10)
    read(0, warm)
    before = memory()
    start = time.perf_counter()
    read(warm, warm + samples)
    seconds = time.perf_counter() - start
    return {**_growth(before, memory()), "read_us": 1e6 * seconds / min(samples, len(order) - warm)}


def _loader_figures(root: Path, images: int, samples: int) -> dict[str, float]:
    """Return figures of a loader worker that reads, decodes and crops."""
    write_photographs(root, images)

    def run_loader() -> dict[str, float]:
        torch.set_num_threads(1)
        reader = open_reader(root, "train", "imagenet", root / "cache")
        micro = min(_MICRO_SIZE, max(1, samples // 20))
        order = Order(len(reader), 8 * micro, micro, seed=0)
        warm = -(-samples // (10 * micro))
        last = warm + -(-samples // micro)
        keys = train_keys(order, range(order.replicas), 0, last)
        source = batch_source(load_recipe("seresnext50").recipe, reader, training=True)
        with open_batches(source, keys, workers=1, timeout=600, pin_memory=False) as batches:
            (worker,) = multiprocessing.active_children()
            for _ in range(warm):
                next(batches)
            before = memory(worker.pid)
            for _ in range(warm, last):
                next(batches)
            return _growth(before, memory(worker.pid))

    return in_a_process(run_loader)


def _order_figures(images: int) -> dict[str, float]:
    """Return the longest wait for one of four steps of a run of 100 epochs, each in a new process and a new order."""
    steps = images // _GLOBAL_SIZE * 100

    def measure(step: int) -> dict[str, float]:
        start = time.perf_counter()
        Order(images, _GLOBAL_SIZE, _MICRO_SIZE, seed=step).micro_batch(step, 3)
        return {"cold_seconds": time.perf_counter() - start}

    return max(
        (in_a_process(partial(measure, step)) for step in (0, 1, steps // 2, steps - 1)),
        key=lambda figures: figures["cold_seconds"],
    )


def _build_figures(root: Path, images: int) -> dict[str, float]:
    """Return the rate of building an index, from a small archive of images of one byte: only headers cost time."""
    per_class, classes = 1000, class_names(1000)[:10]

    def pack(names: list[tuple[str, bytes]]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    root.mkdir()
    inner = [(f"{name}.tar", pack([(f"{name}_{n}.JPEG", b"0") for n in range(per_class)])) for name in classes]
    (root / TRAIN.name).write_bytes(pack(inner))

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        count = len(open_reader(root, "train", "imagenet", root / "cache"))
        rate = count / (time.perf_counter() - start)
        return {"images_per_second": rate, "seconds_for_all_headers": images / rate}

    return in_a_process(measure)


def memory(process: int | None = None) -> dict[str, int]:
    """Return the bytes of a process (by default this one) outside of files (`RssAnon`) and unshared (`Private_Dirty`).

    A write of a forked worker, such as to a reference count, makes a page private. The page was in RssAnon before.
    """
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in (Path("/proc") / str(process or "self") / file).read_text().splitlines():
            name, _, value = line.partition(":")
            if name in _KINDS.values():
                found[name] = int(value.split()[0]) * 1024
    return found


def _growth(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    return {f"worker_{name}_mb": (after[key] - before[key]) / MB for name, key in _KINDS.items()}


def in_a_process(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the figures that a forked process measures."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measure()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()
