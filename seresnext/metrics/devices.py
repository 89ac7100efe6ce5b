"""Memory and utilisation of the GPU of this process."""

from __future__ import annotations

from typing import Any

import torch


def device_usage(device: torch.device) -> dict[str, Any]:
    """Return the peak of allocated memory in GiB since the last call, and the utilisation in percent.

    Nothing waits for the GPU. A CPU has no such numbers. The utilisation needs the package nvidia-ml-py, and is the
    share of the last moments (nvidia-smi, `utilization.gpu`) in which a kernel ran.
    """
    if device.type != "cuda":
        return {}
    usage: dict[str, Any] = {"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 2**30}
    torch.cuda.reset_peak_memory_stats(device)
    try:
        usage["gpu_utilisation"] = torch.cuda.utilization(device)
    except Exception:  # The package or the driver's library is missing, or the driver refuses (MIG, containers).
        return usage
    return usage
