"""Measure the images per second of a whole validation on a CPU: the command from its start to its end.

    python scripts/bench.py validate --peer timm [--timm-checkout DIR] --json FILE

`validate.py` and the peer take turns over the same JPEGs, twice each under two names. The weights are drawn, with one
class for each class folder. The peer is `validate.py` of a checkout of timm, with its defaults. Without a checkout the
peer is a loop of timm's public API (`timm_validate.py`), named `timm_api`. Before the first turn, top-1 and the logits
of both networks are compared. Different results raise an error.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.turns import compare, take_turns
from torch import nn

from seresnext.arguments import path_argument
from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import Decoding
from seresnext.distributed import World
from seresnext.errors import DataError, Failure, UsageError
from seresnext.models import canonical_name, create_model
from seresnext.run.validate import validate

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample.tar"
# The largest difference of two logits in fp32.
LIMIT = 1e-4
_SPLIT = "val"
_DECODING = Decoding(50_000_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py validate`."""
    parser.add_argument(
        "--data",
        type=path_argument,
        default=SAMPLE,
        metavar="PATH",
        help="a folder of class folders with JPEGs, or a tar of one (default: ../shared/data/imagenet-sample.tar)",
    )
    parser.add_argument("--model", default="seresnext26", metavar="NAME", help="default: seresnext26")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="loader workers of each (default: 2)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images per batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds that count (default: 3)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours (default: fp32)")
    parser.add_argument("--peer", action="append", default=[], choices=["timm"])
    parser.add_argument("--timm-checkout", type=path_argument, metavar="DIR", help="a clone of timm's repository")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the images per second of both, the ratio, top-1 and the difference of the logits."""
    if min(arguments.rounds, arguments.batch) < 1:
        raise UsageError("--rounds or --batch is less than 1; give at least 1")
    checkout: Path | None = arguments.timm_checkout
    if checkout and not (checkout / "validate.py").is_file():
        raise UsageError(f"--timm-checkout {checkout} has no validate.py; give a clone of timm's repository")
    with tempfile.TemporaryDirectory(prefix="seresnext-validate-") as name:
        folder = Path(name)
        images, classes = _write_twice(arguments.data, folder / _SPLIT)
        weights = _draw_weights(arguments.model, classes, folder / _SPLIT, folder / "weights.pth")
        figures: dict[str, Any] = {
            name: getattr(arguments, name) for name in ("model", "workers", "batch", "precision")
        } | {"images": images}
        commands = {"ours": _our_command(arguments, folder, weights)}
        if arguments.peer:
            loop = _loop_command(arguments, folder, weights, classes)
            figures |= _compare_results(arguments, folder, weights, loop)
            peer = _checkout_command(checkout, arguments, folder, weights, classes) if checkout else loop
            commands["timm" if checkout else "timm_api"] = peer
        measures: dict[str, Callable[[], float]] = {
            name: partial(_images_per_second, command, images) for name, command in commands.items()
        }
        return figures | compare(take_turns(measures, float, arguments.rounds), "rounds")


def _images_per_second(command: Sequence[object], images: int) -> float:
    started = time.perf_counter()
    _call(command)
    return images / (time.perf_counter() - started)


def _call(command: Sequence[object]) -> None:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no reason printed"]
        raise UsageError(f"{command[1]} ended with exit code {result.returncode}: {reason[0]}")


def _our_command(arguments: argparse.Namespace, folder: Path, weights: Path) -> list[object]:
    loader = ["--workers", arguments.workers, "--batch-size", arguments.batch, "--precision", arguments.precision]
    data = ["--data", folder, "--split", _SPLIT, "--device", "cpu"]
    return [sys.executable, ROOT / "validate.py", "--checkpoint", weights, *data, *loader]


def _loop_command(arguments: argparse.Namespace, folder: Path, weights: Path, classes: int) -> list[object]:
    model = [canonical_name(arguments.model), classes, weights]
    program = Path(__file__).with_name("timm_validate.py")
    return [sys.executable, program, folder / _SPLIT, *model, arguments.workers, arguments.batch, folder / "peer.json"]


def _checkout_command(
    checkout: Path, arguments: argparse.Namespace, folder: Path, weights: Path, classes: int
) -> list[object]:
    model = ["--model", canonical_name(arguments.model), "--num-classes", classes, "--checkpoint", weights]
    loader = ["-j", arguments.workers, "-b", arguments.batch, "--device", "cpu"]
    data = ["--data-dir", folder, "--split", _SPLIT]
    return [sys.executable, checkout / "validate.py", *data, *model, *loader]


def _compare_results(
    arguments: argparse.Namespace, folder: Path, weights: Path, loop: Sequence[object]
) -> dict[str, Any]:
    """Return top-1 of both and the largest difference of two logits. Raise Failure for different results in fp32."""
    how = {"batch_size": arguments.batch, "workers": arguments.workers, "precision": arguments.precision}
    settings = argparse.Namespace(data=str(folder), split=_SPLIT, **how)
    result = validate(weights, World(), settings).result
    _call([*loop, folder / "logits.npy"])
    theirs, top1 = np.load(folder / "logits.npy"), json.loads((folder / "peer.json").read_text())["top1"]
    assert result.logits is not None
    difference = float(np.abs(result.logits - theirs).max())
    same = float((result.logits.argmax(1) == theirs.argmax(1)).mean())
    found = {"top1": result.metrics["top1"], "peer_top1": top1, "same_class": same, "logits_difference": difference}
    print(", ".join(f"{name} {value:.6g}" for name, value in found.items()), flush=True)
    if arguments.precision == "fp32" and (difference > LIMIT or same < 1 or found["top1"] != top1):
        raise Failure(f"the logits differ by {difference:.3g} (limit: {LIMIT}), or top-1 differs; correct this first")
    return found


def _write_twice(source: Path, target: Path) -> tuple[int, int]:
    """Write each JPEG twice into class folders, and return the numbers of images and classes."""
    images, names = 0, set()
    for name, data in _photographs(source):
        (target / name).mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            (target / name / f"{images:06}.JPEG").write_bytes(data)
            images += 1
        names.add(name)
    if not images:
        raise DataError(f"{source} has no class folder with JPEGs; give another with --data")
    return images, len(names)


def _photographs(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield class and content of each JPEG."""
    if source.is_dir():
        for path in sorted(source.glob("*/*")):
            yield path.parent.name, path.read_bytes()
        return
    try:
        with tarfile.open(source) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    yield Path(member.name).parent.name, file.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{source} is no folder and no tar ({error}); give another with --data") from None


def _draw_weights(name: str, classes: int, images: Path, path: Path) -> Path:
    """Write untrained weights whose BatchNorm has the statistics of 16 photographs: the logits have a usual size."""
    torch.manual_seed(0)
    model = create_model(name, classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # The statistics of the one batch.
    files, crop = sorted(images.glob("*/*")), ResizeCenterCrop(224, 0.875, "bicubic")
    chosen = files[:: -(-len(files) // 16)]
    pixels = torch.stack([crop.decode_and_crop(file.read_bytes(), file.name, _DECODING) for file in chosen])
    with torch.no_grad():
        model((pixels.permute(0, 3, 1, 2) / 255 - 0.45) / 0.225)
    torch.save(model.state_dict(), path)
    return path
