"""torch.compile as the recipe requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor


def resolve_compile(requested: bool | str, device: torch.device) -> tuple[bool, str | None]:
    """Return whether to compile, and a notice for the user if the recipe requested otherwise.

    `auto` compiles on CUDA. Compiled code needs a C++ compiler on every device, for the launchers of the kernels. The
    model runs eagerly if the compiler is missing.
    """
    wanted = device.type == "cuda" if requested == "auto" else bool(requested)
    if wanted and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return (
            False,
            "no C++ compiler found: the model runs eagerly, which is slower; install one (apt-get install g++)",
        )
    return wanted, None


def compile_forward(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile the forward of a model. Dropout draws from torch's generators, as in eager code.

    Each image size (progressive sizes) is compiled at its first use. Shapes are never dynamic: with dynamic shapes the
    results of a resumed run would depend on the sizes that the run before had used.
    """
    import torch._dynamo.config
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    # torch runs eagerly after this number of sizes. A run has at most 4096 / 32 sizes (recipe/schema.py).
    torch._dynamo.config.recompile_limit = 4096 // 32
    return torch.compile(forward, dynamic=False)
