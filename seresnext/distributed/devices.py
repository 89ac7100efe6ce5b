"""The device of a process, and GPUs of the machine that torch does not see."""

import os
import re
from pathlib import Path

import torch

from seresnext.errors import UsageError

# Values of CUDA_VISIBLE_DEVICES that hide all GPUs, set by people, and by Slurm in a job without GPUs.
_NO_DEVICES = ("", "-1", "NoDevFiles")


def choose_device(wanted: str = "auto", local_rank: int = 0, local_size: int = 1) -> torch.device:
    """Return the GPU of this process, made torch's current device, or the CPU if wanted or if there is no GPU.

    Raises UsageError if this machine has fewer GPUs than processes, or if torch sees none of the GPUs of this machine:
    a training on the CPU would take months.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        refuse_unseen_gpus()
        return torch.device("cpu")
    if local_size > torch.cuda.device_count():
        raise UsageError(
            f"this machine has {local_size} processes, but torch sees {torch.cuda.device_count()} GPUs; start with "
            f"--nproc_per_node={torch.cuda.device_count()}, or make more GPUs visible"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def refuse_unseen_gpus(devices: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/version")) -> None:
    """Raise UsageError if this machine has NVIDIA GPUs that are not hidden. Call this function if torch sees no GPU.

    Only the device files count: a container without GPUs sees the driver of the host, too.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in _NO_DEVICES:
        return
    gpus = sorted(path.name for path in devices.glob("nvidia[0-9]*"))
    if not gpus:
        return
    build, reason = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build", ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = f" (torch reports: {str(error).partition('. ')[0].strip()})"
    version = re.search(r"\d{3,}\.\d+(\.\d+)?", driver.read_text(errors="replace") if driver.is_file() else "")
    raise UsageError(
        f"this machine has NVIDIA GPUs ({', '.join(gpus)}; driver {version[0] if version else 'unknown'}), and torch "
        f"{torch.__version__} ({build}) sees no GPU{reason}. Install a torch whose CUDA fits the driver, let this user "
        f"open {devices}/nvidia*, or correct CUDA_VISIBLE_DEVICES (now {visible or 'not set'}); --device cpu, or an "
        "empty CUDA_VISIBLE_DEVICES, permits the CPU"
    )
