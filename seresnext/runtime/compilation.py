"""torch.compile by recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor


def resolve_compile(requested: bool | str, device: torch.device) -> tuple[bool, str | None]:
    """Whether to compile, and what to tell the user when that is not what the recipe asked for.

    `auto` compiles on CUDA. Without a C++ compiler, which the compiled code's launchers need on every device, the
    model runs eagerly with a notice.
    """
    wanted = device.type == "cuda" if requested == "auto" else bool(requested)
    if wanted and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return False, "no C++ compiler found: the model runs eagerly, slower than compiled (apt-get install g++)"
    return wanted, None


def compile_forward(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a model's forward, with dropout drawing from torch's own generators as eager code does.

    It is compiled once for each size of images, when that size is first seen (progressive sizes), never for any size at
    once: what a resumed run computes would depend on the sizes that the run before it had seen.
    """
    import torch._dynamo.config
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    # Beyond so many sizes torch would run eagerly; a run has at most 4096 / 32 (recipe/schema.py).
    torch._dynamo.config.recompile_limit = 4096 // 32
    return torch.compile(forward, dynamic=False)
