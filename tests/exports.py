"""Helpers of the tests of exports: a network of timm, and commands in this process."""

from __future__ import annotations

from pathlib import Path

import timm
import torch

from seresnext import cli
from seresnext.process.stop_request import StopRequest

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


def run(*words: object) -> int:
    """Run a command in this process. Return the exit code."""
    with StopRequest() as stop:
        return cli.main([str(word) for word in words], stop)


def replace(file: Path, content: bytes) -> None:
    """Replace a file that may be a link."""
    file.unlink()
    file.write_bytes(content)
