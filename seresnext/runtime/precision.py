"""The number formats of weights and of computation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from seresnext.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """The format of the weights, and the format of convolutions and matrix products if different (autocast)."""

    name: str
    weights: torch.dtype = torch.float32
    autocast_to: torch.dtype | None = None

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context for a forward pass."""
        if self.autocast_to is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_to)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return a gradient scaler, enabled only for fp16: the smallest normal number of fp16 is 6e-5."""
        return torch.amp.GradScaler(device.type, enabled=self.autocast_to is torch.float16)

    def apply_to(self, model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
        """Move a model to a device, to the format of the weights and to a memory layout, in place."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return model.to(device=device, dtype=self.weights).to(memory_format=layout)


PRECISIONS = {
    "fp64": Precision("fp64", weights=torch.float64),
    "fp32": Precision("fp32"),
    "bf16": Precision("bf16", autocast_to=torch.bfloat16),
    "fp16": Precision("fp16", autocast_to=torch.float16),
}


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return the name of a precision. `auto` is bf16 on CUDA 8.0 and newer, fp16 on older GPUs, fp32 on the CPU.

    Raises UsageError for bf16 on a GPU that does not support bf16.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    if requested == "bf16" and not has_bf16:
        raise UsageError(
            f"runtime.precision is bf16, but {torch.cuda.get_device_name(device)} does not support bf16 (compute "
            "capability 8.0 or newer does); set runtime.precision to fp16 or auto"
        )
    if requested != "auto":
        return requested
    if device.type != "cuda":
        return "fp32"
    return "bf16" if has_bf16 else "fp16"
