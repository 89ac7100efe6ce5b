"""Helpers of the tests of exports: a network of timm, and commands in this process."""

import hashlib
import json
from pathlib import Path

import timm
import torch

from seresnext import cli
from seresnext.process.signals import StopRequest

_MANIFEST = "manifest.json"
CLASSES = ["ant", "bee", "<script>", "dog | cat", "eel"]
SETTINGS = [
    f"model.num_classes={len(CLASSES)}", "data.image_size=64", "evaluation.crop_pct=0.8",
    "evaluation.interpolation=bicubic", "ema={decay: 0.9}",
]  # fmt: skip


def make_oracle(name: str, seed: int) -> torch.nn.Module:
    """Return a network of timm with random weights and with the statistics of a training step."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=len(CLASSES), drop_rate=0.0)
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
        # Random weights give small logits; a trained network has logits of about this size.
        list(model.parameters())[-2].mul_(100)
    return model.eval()


def assert_same_logits(model: torch.nn.Module, oracle: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), oracle(images))


def run(*words: object) -> int:
    with StopRequest() as stop:
        return cli.main([str(word) for word in words], stop)


def replace(file: Path, content: bytes) -> None:
    """Replace a file that may be a link."""
    file.unlink()
    file.write_bytes(content)


def rewrite_manifest(folder: Path) -> None:
    """Compute all digests again, as somebody would who hides a change: independent of the code of the package."""
    manifest = json.loads((folder / _MANIFEST).read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST]
    manifest["files"] = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    manifest["digest"] = "0" * 64
    blank = json.dumps(manifest, indent=1)
    replace(folder / _MANIFEST, blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest()).encode())
