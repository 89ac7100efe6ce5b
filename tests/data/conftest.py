"""What the tests of the data share: some real photographs, and a source of batches that decodes nothing."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seresnext.data.loader import Batch
from seresnext.data.order import BatchKey
from seresnext.data.whereabouts import note_images

_ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample.tar"


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """Ten real ImageNet JPEGs of different sizes, as bytes."""
    if not _ARCHIVE.exists():
        pytest.skip(f"needs {_ARCHIVE}, which is not part of the project")
    with tarfile.open(_ARCHIVE) as tar:
        members = [member for member in tar.getmembers() if member.isfile()][::50]
        return [file.read() for member in members if (file := tar.extractfile(member))]


class Numbers:
    """Batches whose pixels are the numbers of their images; `act(key)` is called for each in the worker."""

    def __init__(self, act: Callable[[BatchKey], object]) -> None:
        self._act = act

    image_bytes = 48

    def name(self, index: int) -> str:
        return f"number {index}"

    def make(self, key: BatchKey) -> Batch:
        note_images(key.indices.tolist())
        self._act(key)
        indices = torch.from_numpy(key.indices.copy())
        images = (indices % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, indices, torch.zeros(len(indices), dtype=torch.bool), indices.clone(), *key[:2])


@pytest.fixture
def numbers() -> type[Numbers]:
    """The class Numbers."""
    return Numbers
