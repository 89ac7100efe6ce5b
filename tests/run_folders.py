"""Readers of a run folder for tests."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, equal, uint8

# Metadata that differ between runs with the same numbers.
OTHER_METADATA = ("digest", "environment", "recipe", "recipe_hash")


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the events of `metrics.jsonl`, without times and speeds."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = {"images_per_second", "data_wait", "seconds_per_step"}
    of_time = {"slowest_rank", "throughput_drop", "data_starvation"}
    found = [line for line in found if of_time.isdisjoint({line["event"], line.get("kind")})]
    return [{k: v for k, v in line.items() if k not in timing} for line in found]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in `metrics.jsonl`, without times and speeds."""
    return [line for line in lines(run) if line["event"] == kind]


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in events(run, "train")]


def last_tensors(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / "last.safetensors")


def differences(run: Path, other: Path) -> list[str]:
    ours, theirs = last_tensors(run), last_tensors(other)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not equal(ours[name], theirs[name])]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def digest(run: Path) -> str:
    """Return a digest of the last checkpoint and the metrics of a run, without times, paths, versions and recipe."""
    total = hashlib.sha256()
    for name, tensor in sorted(last_tensors(run).items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(dtype=uint8).numpy().tobytes())
    with safe_open(run / "checkpoints" / "last.safetensors", "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key not in OTHER_METADATA}
    total.update(json.dumps([metadata, events(run, "train"), events(run, "validate")], sort_keys=True).encode())
    return total.hexdigest()
