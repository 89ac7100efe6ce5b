"""Settings of a model on a device: precision, memory format, compilation, determinism, and malloc."""

import ctypes
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seresnext.errors import UsageError

# The parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 << 20  # linux/mman.h
# The range of addresses that is marked for huge pages: more than a step needs. Unused addresses take no memory.
_HEAP_BYTES = 16 << 30


@dataclass(frozen=True)
class Precision:
    """The format of the weights, and the format of convolutions and matrix products if different (autocast)."""

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
    "fp64": Precision(weights=torch.float64),
    "fp32": Precision(),
    "bf16": Precision(autocast_to=torch.bfloat16),
    "fp16": Precision(autocast_to=torch.float16),
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


def resolve_compile(requested: bool | str, device: torch.device) -> tuple[bool, str | None]:
    """Return whether to compile, and a notice for the user if the recipe requested otherwise.

    `auto` compiles on CUDA. Compiled code needs a C++ compiler on every device, for the launchers of the kernels. The
    model runs eagerly if the compiler is missing.
    """
    wanted = device.type == "cuda" if requested == "auto" else bool(requested)
    if wanted and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        notice = "no C++ compiler found: the model runs eagerly, which is slower; install one (apt-get install g++)"
        return False, notice
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


def make_deterministic(enabled: bool) -> None:
    """Select deterministic kernels if `enabled`, else the fastest kernels.

    CPU kernels are always deterministic. On CUDA deterministic kernels are slower: cuDNN cannot benchmark several
    kernels, and cuBLAS needs a fixed workspace (cuBLAS documentation, "Results reproducibility").
    """
    torch.backends.cudnn.benchmark = not enabled
    # fp32 means IEEE single precision. By default torch lets cuDNN round the inputs of convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = False
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def tune_malloc(device: torch.device) -> bool:
    """Make malloc keep freed memory in this process, for training on a CPU. Returns whether the setting took effect.

    By default glibc returns large blocks to the system at once. Each step then allocates all activations again, as
    pages that the kernel must fill with zeros: half a million page faults and at least 20 % of the time of a step.
    With this setting the process keeps the memory, in pages of 2 MiB if Linux allows. torch itself caches GPU memory.
    """
    libc = ctypes.CDLL(None)
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    if device.type != "cpu" or not hasattr(libc, "mallopt") or not all(map(libc.mallopt, settings, settings.values())):
        return False
    _request_huge_pages(libc)
    return True


def _request_huge_pages(libc: ctypes.CDLL) -> None:
    """Extend the heap by a range of addresses marked for huge pages. If the system refuses, pages stay small."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(_HEAP_BYTES)
    if start is None:
        return
    first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(first, (start + _HEAP_BYTES - first) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
    libc.free(start)
