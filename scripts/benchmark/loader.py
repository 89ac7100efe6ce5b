"""How many images a second the training loader makes, beside a peer's, and where the time goes.

    python scripts/bench.py loader --data DIR [--peer PEER]... [--breakdown] --json FILE

Ours and the peers take turns, an epoch each; the figure is the median of the epochs after the first. Batches are made
as a run makes them, uint8 on the host; the peers do what their own recipes do. A peer that is not installed beside us
is run in an environment of its own: `--peer-python dali=/path/to/venv/bin/python`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seresnext.data.augment.crop import RandomResizedCrop
from seresnext.data.batches import TrainImages, collate
from seresnext.data.decode.jpeg import read_frame
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Encoded, open_decoder
from seresnext.data.decode.resize import resize_into
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.data.readers.table import open_reader
from seresnext.errors import DataError, UsageError
from seresnext.paths import path_argument
from seresnext.randomness import rng_at

SIZE, MAX_PIXELS, SEED = 224, 50_000_000, 0
TRANSFORM = RandomResizedCrop(SIZE, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")
PEERS = ("torchvision", "timm", "dali", "ffcv")
# Images decoded together, as in training.
_TOGETHER = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py loader`."""
    parser.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="holds the split")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--format", default="folder", choices=["folder", "imagenet", "shards"])
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of ours and of each peer (default: 2)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images of a batch (default: 64)")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="measured after the first (default: 6)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="passes over the images an epoch")
    parser.add_argument("--peer", action="append", default=[], choices=PEERS, help="may be given several times")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="PEER=PYTHON", help="the interpreter that has a peer"
    )
    parser.add_argument("--breakdown", action="store_true", help="also time the parts of one image, in one process")
    parser.add_argument(
        "--decoder", choices=["nvimgcodec", "pillow"], help="default: nvimgcodec where the extra `fast` is installed"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return images a second of ours and of the peers, their ratio, and the breakdown."""
    fast = HAS_NVIMGCODEC if arguments.decoder is None else arguments.decoder == "nvimgcodec"
    pythons = _pythons(arguments.peer_python)
    if arguments.workers < 1 or arguments.epochs < 1:
        raise UsageError("--workers and --epochs are at least 1")
    torch.set_num_threads(1)
    reader = open_reader(arguments.data, arguments.split, arguments.format)
    if len(reader) < arguments.batch:
        raise DataError(f"{arguments.data} has {len(reader)} images, fewer than a batch of {arguments.batch}")
    figures: dict[str, Any] = {
        "images": len(reader),
        "workers": arguments.workers,
        "batch": arguments.batch,
        "decoder": "nvimgcodec" if fast else "pillow",
        "format": arguments.format,
    }
    with ExitStack() as stack:
        epochs = {"ours": stack.enter_context(_our_epochs(reader, arguments, fast))}
        for peer in arguments.peer:
            folder = arguments.data / arguments.split
            epochs[peer] = stack.enter_context(_peer_epochs(peer, pythons.get(peer, sys.executable), folder, arguments))
        rates = _measure(epochs, 1 + arguments.epochs)
    figures |= _compare(rates)
    if arguments.breakdown:
        figures["breakdown"] = _breakdown(reader, fast)
    return figures


def _pythons(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for peer, _, python in pairs:
        if peer not in PEERS or not Path(python).is_file():
            raise UsageError(f"--peer-python {peer}={python}: give a peer and its interpreter, dali=VENV/bin/python")
    return {peer: python for peer, _, python in pairs}


# ----------------------------------------------------------------------------------------------------- epochs


@contextmanager
def _our_epochs(reader: Reader, arguments: argparse.Namespace, fast: bool) -> Iterator[Iterator[float]]:
    """Images a second, epoch after epoch, by the loader that training uses."""
    batch = arguments.batch
    order = Order(len(reader), batch, batch, SEED)
    # Workers start together and hand over together: only whole rounds of batches, one of each worker, take the time
    # that they seem to.
    workers = arguments.workers
    steps = -(-order.steps_per_epoch * arguments.repeat // workers) * workers
    source = TrainImages(reader, TRANSFORM, seed=SEED, max_pixels=MAX_PIXELS, fast=fast)

    def measure() -> Generator[float, None, None]:
        # Each epoch on its own, so that no worker runs ahead into the turn of a peer. The clock starts after the first
        # rounds, when all the memory of batches has been used once, and stops before the last ones.
        ahead = 3 * workers
        for epoch in range(10**9):
            first = epoch * (steps + 2 * ahead)
            keys = train_keys(order, range(1), first, first + steps + 2 * ahead)
            with open_batches(source, keys, workers=workers, timeout=600, pin_memory=False) as batches:
                for _ in range(ahead):
                    next(batches)
                started = time.perf_counter()
                images = sum(len(next(batches).labels) for _ in range(steps))
                seconds = time.perf_counter() - started
            yield images / seconds

    epochs = measure()
    try:
        yield epochs
    finally:
        epochs.close()


@contextmanager
def _peer_epochs(peer: str, python: str, folder: Path, arguments: argparse.Namespace) -> Iterator[Iterator[float]]:
    """Images a second, epoch after epoch, by a peer in a process of its own, which rests between them."""
    command = [python, Path(__file__).parent / "peers.py", peer, folder, arguments.workers, arguments.batch]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin
        assert process.stdout

        def answer() -> str:
            assert process.stdout
            return process.stdout.readline()

        if answer() != "ready\n":
            complaint = process.communicate()[1].strip().splitlines()[-1:] or ["no reason given"]
            raise UsageError(f"the peer {peer} does not start with {python}: {complaint[0]}; see --peer-python")

        def measure() -> Iterator[float]:
            assert process.stdin
            while True:
                images = seconds = 0.0
                for _ in range(arguments.repeat):
                    process.stdin.write("\n")
                    process.stdin.flush()
                    some, took = map(float, answer().split())
                    images, seconds = images + some, seconds + took
                yield images / seconds

        try:
            yield measure()
        finally:
            process.kill()


def _measure(epochs: dict[str, Iterator[float]], count: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(count):
        for name, rate in epochs.items():
            rates[name].append(next(rate))
        words = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
        print(f"epoch {number}{' (not counted)' if number == 0 else ''}: {words} images/s", flush=True)
    return {name: values[1:] for name, values in rates.items()}


def _compare(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median of the ratios of neighbouring epochs: what slows the machine down slows down both."""
    ours = rates["ours"]
    found: dict[str, Any] = {"images_per_second": statistics.median(ours), "epochs": ours, "peer": {}, "ratio": {}}
    print(f"ours: {found['images_per_second']:.1f} images/s")
    for name, theirs in rates.items():
        if name == "ours":
            continue
        found["peer"][name] = {"images_per_second": statistics.median(theirs), "epochs": theirs}
        found["ratio"][name] = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{name}: {statistics.median(theirs):.1f} images/s; ours is {found['ratio'][name]:.2f} times that")
    return found


# -------------------------------------------------------------------------------------------------- breakdown


def _breakdown(reader: Reader, fast: bool, repeats: int = 3) -> dict[str, Any]:
    """Processor time of the parts of an image in microseconds, in one process; the least of some repeats.

    `decoder_share` is what the decoder alone takes of all: were the rest free, a loader could be that much faster.
    """
    rounds = [_time_parts(reader, fast, epoch) for epoch in range(repeats)]
    parts = {name: min(one[name] for one in rounds) for name in rounds[0]}
    total = sum(parts.values())
    found = {**{name: round(value, 1) for name, value in parts.items()}, "total": round(total, 1)}
    found["decoder_share"] = round(parts["decode"] / total, 3)
    print("microseconds of processor time an image: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def _time_parts(reader: Reader, fast: bool, epoch: int) -> dict[str, float]:
    spent = dict.fromkeys(("read", "header", "decode", "resize", "collate"), 0.0)
    decoder = open_decoder(MAX_PIXELS, fast)
    count = len(reader) // _TOGETHER * _TOGETHER
    clock = time.process_time
    batch = torch.empty((_TOGETHER, SIZE, SIZE, 3), dtype=torch.uint8).share_memory_()
    for start in range(0, count, _TOGETHER):
        places = range(start, start + _TOGETHER)
        began = clock()
        encoded = [Encoded(reader.read(index), partial(reader.name, index)) for index in places]
        spent["read"] += (read := clock()) - began
        frames = [read_frame(data) for data, _ in encoded]
        crops = [
            TRANSFORM.draw(frame.width, frame.height, rng_at(SEED, "augment", epoch, start + number, 0))
            for number, frame in enumerate(frames)
            if frame
        ]
        spent["header"] += (header := clock()) - read
        results = decoder(
            encoded,
            lambda number, w, h, start=start: TRANSFORM.draw(w, h, rng_at(SEED, "augment", epoch, start + number, 0)),
        )
        # The decoder reads the header and asks for the crop, too.
        spent["decode"] += (decoded := clock()) - header - (header - read) * (len(crops) == _TOGETHER)
        for number, pixels in enumerate(results):
            if isinstance(pixels, DataError):
                raise pixels
            resize_into(batch[number], pixels, "bilinear")
        spent["resize"] += (resized := clock()) - decoded
        indices = np.arange(start, start + _TOGETHER)
        key = BatchKey(0, 0, epoch, indices)
        collate(key, batch, [False] * _TOGETHER, reader.labels)
        spent["collate"] += clock() - resized
    return {name: 1e6 * value / count for name, value in spent.items()}
