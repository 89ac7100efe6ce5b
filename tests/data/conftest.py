"""Shared fixtures: images, and shards with a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from encoded_images import Images, encoded, noise
from shard_folders import Server, make_shards, serve

from seresnext import remote


@pytest.fixture(scope="session")
def photographs(imagenet_sample: Path) -> list[bytes]:
    """Ten real ImageNet JPEGs of different sizes, as bytes."""
    return [path.read_bytes() for path in sorted((imagenet_sample / "train").glob("*/*"))[::50]]


@pytest.fixture(scope="session")
def reader() -> Images:
    """26 PNGs of noise in two classes."""
    return Images(*(encoded(noise(40, 30 + number), "PNG") for number in range(26)))


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
