"""Measure the images per second of the training loader and of peers, and the time of each part of an image.

    python scripts/bench.py loader --data DIR [--peer PEER]... [--breakdown] --json FILE

Our loader and the peers take turns, one epoch each. The figure is the median of the epochs after the first. Our loader
makes the batches of a run on a GPU: uint8 on the host, sent in torch's shared memory. Each peer follows its own
ImageNet recipe; torchvision and timm send float32 or uint8 tensors in the same shared memory. A peer that is installed
in another environment runs there: `--peer-python dali=/path/to/venv/bin/python`.
"""

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.turns import Worker, compare, take_turns
from PIL import Image

from seresnext.arguments import path_argument
from seresnext.data.augment.crop import Crop, random_resized_crop, resize_into
from seresnext.data.batches import TrainImages, collate
from seresnext.data.decode.jpeg import plain_size
from seresnext.data.decode.kinds import kind_of
from seresnext.data.decode.pillow import Decoding
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Encoded, RegionDecoder
from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.errors import DataError, UsageError
from seresnext.randomness import rng_at
from seresnext.recipe.schema import AugmentSection, DataSection

SIZE, SEED = 224, 0
DECODING = Decoding.of(DataSection())
AUGMENT = AugmentSection()
PEERS = ("torchvision", "timm", "dali", "ffcv")
# Images decoded in one call, as in training.
_DECODED_TOGETHER = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py loader`."""
    parser.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="folder with the split")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--format", default="folder", choices=["folder", "imagenet", "shards"])
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers of each loader (default: 2)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images per batch (default: 64)")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="measured epochs (default: 6)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="passes over the images in an epoch")
    parser.add_argument("--peer", action="append", default=[], choices=PEERS, help="may be repeated")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="PEER=PYTHON", help="interpreter of a peer's environment"
    )
    parser.add_argument(
        "--orientation", action="append", type=int, choices=range(1, 9), default=[], metavar="1-8",
        help="repeatable: also measure data.exif_rotation, with this EXIF orientation in each JPEG",
    )  # fmt: skip
    parser.add_argument("--breakdown", action="store_true", help="also measure the parts of one image, in one process")
    parser.add_argument(
        "--decoder", choices=["nvimgcodec", "pillow"], help="default: nvimgcodec if the extra `fast` is installed"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the images per second of all loaders, the ratios, and the breakdown."""
    fast = HAS_NVIMGCODEC if arguments.decoder is None else arguments.decoder == "nvimgcodec"
    if arguments.workers < 1 or arguments.epochs < 1:
        raise UsageError("--workers or --epochs is less than 1; give at least 1")
    pythons = dict.fromkeys(PEERS, sys.executable)
    for peer, _, python in (word.partition("=") for word in arguments.peer_python):
        if peer not in PEERS or not Path(python).is_file():
            raise UsageError(
                f"--peer-python {peer}={python} is no peer with an interpreter; give for example dali=VENV/bin/python"
            )
        pythons[peer] = python
    torch.set_num_threads(1)
    reader = open_reader(arguments.data, arguments.split, arguments.format)
    if len(reader) < arguments.batch:
        raise DataError(f"{arguments.data} has only {len(reader)} images; set --batch to {len(reader)} or less")
    figures: dict[str, Any] = {
        "images": len(reader),
        "workers": arguments.workers,
        "batch": arguments.batch,
        "decoder": "nvimgcodec" if fast else "pillow",
        "format": arguments.format,
    }
    with ExitStack() as stack:
        epochs: dict[str, Callable[[], float]] = {}
        epochs["ours"] = stack.enter_context(closing(_our_epochs(reader, arguments, fast))).__next__
        for orientation in arguments.orientation:
            tagged = _our_epochs(_Tagged(reader, orientation), arguments, fast)
            epochs[f"orientation {orientation}"] = stack.enter_context(closing(tagged)).__next__
        for peer in arguments.peer:
            words = [peer, arguments.data / arguments.split, arguments.workers, arguments.batch]
            command = [pythons[peer], Path(__file__).parent / "peers.py", *words]
            name = f"the peer {peer}, which runs in the Python of --peer-python,"
            worker = stack.enter_context(closing(Worker(name, [str(word) for word in command], threads=1)))
            worker.answer()
            epochs[peer] = partial(_peer_epoch, worker, arguments.repeat)
        rates = take_turns(epochs, float, arguments.epochs)
    figures |= compare(rates, "epochs")
    if arguments.breakdown:
        figures["breakdown"] = _breakdown(reader, fast)
        for orientation in arguments.orientation:
            figures[f"breakdown of orientation {orientation}"] = _breakdown(_Tagged(reader, orientation), fast)
    return figures


class _Tagged(Reader):
    """The images of a reader. Each JPEG has an EXIF orientation, as of a camera."""

    def __init__(self, reader: Reader, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        body = exif.tobytes()
        self._reader, self._segment = reader, b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body
        self.classes, self.labels, self.fingerprint = reader.classes, reader.labels, reader.fingerprint
        self.notices = reader.notices

    def name(self, index: int) -> str:
        return self._reader.name(index)

    def read(self, index: int) -> bytes:
        data = self._reader.read(index)
        return data[:2] + self._segment + data[2:] if kind_of(data) == "JPEG" else data


def _decoding(reader: Reader) -> Decoding:
    return replace(DECODING, exif_rotation=isinstance(reader, _Tagged))


def _our_epochs(reader: Reader, arguments: argparse.Namespace, fast: bool) -> Generator[float, None, None]:
    """Yield the images per second of each epoch of the training loader."""
    batch, workers = arguments.batch, arguments.workers
    order = Order(len(reader), batch, batch, SEED)
    # Workers start together and deliver together, so only whole rounds (one batch per worker) are measured.
    steps = -(-order.steps_per_epoch * arguments.repeat // workers) * workers
    source = TrainImages(reader, AUGMENT, SIZE, seed=SEED, decoding=_decoding(reader), fast=fast)
    # Each epoch has new workers, so that no worker runs ahead in the turn of a peer. The clock starts after the
    # first rounds and stops before the last ones, when fewer workers are busy.
    ahead = 3 * workers
    for first in itertools.count(step=steps + 2 * ahead):
        keys = train_keys(order, range(1), first, first + steps + 2 * ahead)
        # As for a GPU: the tensors travel in shared memory. A machine without a GPU pins nothing, and torch warns.
        with (
            warnings.catch_warnings(action="ignore"),
            open_batches(source, keys, workers=workers, timeout=600, pin_memory=True) as batches,
        ):
            for _ in range(ahead):
                next(batches)
            started = time.perf_counter()
            images = sum(len(next(batches).labels) for _ in range(steps))
            seconds = time.perf_counter() - started
        yield images / seconds


def _peer_epoch(worker: Worker, repeat: int) -> float:
    """Return the images per second of an epoch of a peer. The process of the peer is idle between the epochs."""
    figures = []
    for _ in range(repeat):
        worker.ask()
        figures.append(json.loads(worker.answer()))
    images, seconds = map(sum, zip(*figures, strict=True))
    return images / seconds


# -------------------------------------------------------------------------------------------------- breakdown


def _breakdown(reader: Reader, fast: bool, repeats: int = 3) -> dict[str, Any]:
    """Return the processor time of each part of an image in microseconds, in one process: the least of all repeats.

    `decoder_share` is the decoder's share of the total. It limits the gain from faster other parts.
    """
    rounds = [_time_parts(reader, fast, epoch) for epoch in range(repeats)]
    parts = {name: min(one[name] for one in rounds) for name in rounds[0]}
    total = sum(parts.values())
    found = {**{name: round(value, 1) for name, value in parts.items()}, "total": round(total, 1)}
    found["decoder_share"] = round(parts["decode"] / total, 3)
    print("microseconds of processor time per image: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def _time_parts(reader: Reader, fast: bool, epoch: int) -> dict[str, float]:
    spent = dict.fromkeys(("read", "header", "decode", "resize", "collate"), 0.0)
    decoder = RegionDecoder(_decoding(reader), fast)
    count = len(reader) // _DECODED_TOGETHER * _DECODED_TOGETHER
    clock = time.process_time
    batch = torch.empty((_DECODED_TOGETHER, SIZE, SIZE, 3), dtype=torch.uint8)
    for start in range(0, count, _DECODED_TOGETHER):
        indices = range(start, start + _DECODED_TOGETHER)

        def crop(number: int, width: int, height: int, start: int = start) -> Crop:
            return random_resized_crop(AUGMENT, width, height, rng_at(SEED, "augment", epoch, start + number, 0))

        began = clock()
        encoded = [Encoded(reader.read(index), partial(reader.name, index)) for index in indices]
        spent["read"] += (read := clock()) - began
        sizes = [plain_size(data) for data, _ in encoded]
        crops = [crop(number, *size) for number, size in enumerate(sizes) if size]
        spent["header"] += (header := clock()) - read
        results = decoder(encoded, crop)
        # The decoder also reads the header and chooses the crop.
        spent["decode"] += (decoded := clock()) - header - (header - read) * (len(crops) == _DECODED_TOGETHER)
        for number, pixels in enumerate(results):
            if isinstance(pixels, DataError):
                raise pixels
            resize_into(batch[number], pixels, "bilinear")
        spent["resize"] += (resized := clock()) - decoded
        key = BatchKey(0, 0, epoch, np.array(indices))
        collate(key, batch, [False] * _DECODED_TOGETHER, reader.labels)
        spent["collate"] += clock() - resized
    return {name: 1e6 * value / count for name, value in spent.items()}
