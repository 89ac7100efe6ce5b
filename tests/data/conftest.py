"""Shared fixtures: real photographs, and a source of batches without decoding."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_folders import Server, make_shards, serve

from seresnext.data.batches import Batch
from seresnext.data.formats import open_reader
from seresnext.data.order import BatchKey
from seresnext.data.readers import Reader
from seresnext.data.shards import remote
from seresnext.data.worker_status import set_current_images

_ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample.tar"


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """Ten real ImageNet JPEGs of different sizes, as bytes."""
    if not _ARCHIVE.exists():
        pytest.skip(f"needs {_ARCHIVE}, which is not part of the project")
    with tarfile.open(_ARCHIVE) as tar:
        members = [member for member in tar.getmembers() if member.isfile()][::50]
        return [file.read() for member in members if (file := tar.extractfile(member))]


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


class Numbers:
    """Batches with the image numbers as pixels. The worker calls `act(key)` for each batch."""

    def __init__(self, act: Callable[[BatchKey], object]) -> None:
        self._act = act
        self.reader = self

    def name(self, index: int) -> str:
        return f"number {index}"

    def make(self, key: BatchKey) -> Batch:
        set_current_images(key.indices.tolist())
        self._act(key)
        indices = torch.from_numpy(key.indices.copy())
        images = (indices % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, indices, torch.zeros(len(indices), dtype=torch.bool), indices.clone(), *key[:2])


@pytest.fixture
def numbers() -> type[Numbers]:
    """The class Numbers."""
    return Numbers
