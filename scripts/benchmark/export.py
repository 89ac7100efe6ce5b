"""Measure each kind of export: size of the file, latency of one image, images a second of a batch.

    python scripts/bench.py export --checkpoint FILE --json FILE

The kinds take turns, and the network in PyTorch is the peer. All run on the CPU, with the threads of torch.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seresnext.arguments import path_argument
from seresnext.export.create import write_export
from seresnext.export.documents import read_document
from seresnext.export.golden import Network, draw_golden
from seresnext.export.kinds import KINDS
from seresnext.models import build_pretrained, create_model, find_weights, open_weights, timm_state_dict
from seresnext.models.timm_config import CONFIG, TimmConfig

_PEER = "pytorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py export`."""
    parser.add_argument("--checkpoint", type=path_argument, metavar="FILE", help="default: untrained weights")
    parser.add_argument("--model", default="seresnext50", metavar="NAME", help="without FILE (default: seresnext50)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="default: all")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each kind (default: 7)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return the figures of each kind."""
    with tempfile.TemporaryDirectory(prefix="seresnext-export-") as folder:
        source = _source(arguments, Path(folder))
        loaded = open_weights(source)
        model = build_pretrained(loaded)
        networks: dict[str, Network] = {_PEER: model}
        sizes = {_PEER: source.stat().st_size}
        for name in arguments.kinds:
            target = Path(folder) / name
            target.mkdir()
            write_export(target, name, model, loaded, source, draw_golden(), None)
            file = target / KINDS[name].file
            networks[name] = KINDS[name].open(file, read_document(TimmConfig, target / CONFIG))
            sizes[name] = file.stat().st_size
        size = loaded.preprocessing.image_size
        one, batch = torch.randn(1, 3, size, size), torch.randn(arguments.batch_size, 3, size, size)
        latencies: dict[str, list[float]] = {name: [] for name in networks}
        speeds: dict[str, list[float]] = {name: [] for name in networks}
        for number in range(arguments.rounds + 1):
            for name, network in networks.items():
                latency, seconds = _seconds(network, one), _seconds(network, batch)
                if number:  # The first turn warms up.
                    latencies[name].append(1000 * latency)
                    speeds[name].append(arguments.batch_size / seconds)
    figures = {
        name: {
            "bytes": sizes[name],
            "latency_ms": statistics.median(latencies[name]),
            "images_per_second": statistics.median(speeds[name]),
            "ratio": statistics.median(ours / peer for ours, peer in zip(speeds[name], speeds[_PEER], strict=True)),
        }
        for name in networks
    }
    print(f"{loaded.identify().name}, {size} pixels, batch {arguments.batch_size}, {torch.get_num_threads()} threads")
    print(f"{'kind':<9} {'MB':>7} {'ms an image':>12} {'images/s':>9} {'ratio':>6}")
    for name, row in figures.items():
        print(
            f"{name:<9} {row['bytes'] / 1e6:>7.1f} {row['latency_ms']:>12.1f} {row['images_per_second']:>9.1f} "
            f"{row['ratio']:>6.2f}"
        )
    return {"model": loaded.identify().name, "image_size": size, "peer": _PEER, "kinds": figures}


def _source(arguments: argparse.Namespace, folder: Path) -> Path:
    if arguments.checkpoint:
        return find_weights(arguments.checkpoint)
    path = folder / "untrained.safetensors"
    save_file(timm_state_dict(create_model(arguments.model)), path)
    return path


def _seconds(network: Network, images: torch.Tensor) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        network(images)
        return time.perf_counter() - start
