"""Shared fixtures: real photographs, and a source of batches without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_folders import Server, make_shards, serve

from seresnext.data.formats import open_reader
from seresnext.data.readers import Reader
from seresnext.data.shards import remote


@pytest.fixture(scope="session")
def photographs(imagenet_sample: Path) -> list[bytes]:
    """Ten real ImageNet JPEGs of different sizes, as bytes."""
    return [path.read_bytes() for path in sorted((imagenet_sample / "train").glob("*/*"))[::50]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """26 PNGs of noise in two classes."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(26):
        path = root / "train" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)).save(path)
    return open_reader(root, "train")


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    """A folder with four shards of training."""
    make_shards(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server(shard_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the shards, which is not waited for long."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with serve(shard_root) as running:
        yield running
