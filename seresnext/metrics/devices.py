"""Memory and utilisation of the GPU of this process."""

from __future__ import annotations

import torch


def device_usage(device: torch.device) -> dict[str, float]:
    """Return the peak of allocated memory in GiB since the last call, and the utilisation in percent (not on a CPU)."""
    if device.type != "cuda":
        return {}
    usage = {"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 2**30}
    torch.cuda.reset_peak_memory_stats(device)
    try:
        return {**usage, "gpu_utilisation": torch.cuda.utilization(device)}
    except Exception:  # The package is missing, or the driver refuses (MIG, containers).
        return usage
