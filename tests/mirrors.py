"""Small checkpoints and mirrors for the tests of mirrors."""

from pathlib import Path

import torch

from seresnext.checkpoint import store
from seresnext.checkpoint.mirror_files import MirrorFiles, Owner, Upload

RUN, OTHER = "a" * 32, "b" * 32


def save(folder: Path, step: int) -> Path:
    tensors = {"model.weight": torch.full((1000,), float(step))}
    return store.commit(folder, step, tensors, {"format": "seresnext-2", "step": str(step)})


def own(address: str, run: str = RUN, step: int = 0) -> tuple[MirrorFiles, Owner]:
    files = MirrorFiles(address)
    return files, files.claim(run, step, lambda before: None)


def add(files: MirrorFiles, owner: Owner, number: int, path: Path, folder: Path = Path("none")) -> Upload:
    """Upload a checkpoint, and return the entry that the mirror should list."""
    upload = Upload(int(store.verify(path)["step"]), owner.number, number)
    files.upload(owner, upload, path, folder)
    return upload


def content(files: MirrorFiles, run: str, upload: Upload) -> bytes:
    chunks: list[bytes] = []
    files.download(run, files.manifest(run, upload), chunks.append)
    return b"".join(chunks)
