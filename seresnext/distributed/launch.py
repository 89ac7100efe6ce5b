"""Start and end of a `World` of the processes that torchrun started, and the device of each process."""

# The stores are public, but torch does not export them.
# pyright: reportPrivateImportUsage=false
import os
import re
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from seresnext.distributed.heartbeat import Heartbeat
from seresnext.distributed.world import World
from seresnext.errors import Failure, RankLost, UsageError
from seresnext.process.signals import die_with_parent

# The longest wait of one rank for another. The slowest work of a single rank takes less: the first compilation, or a
# checkpoint on slow storage.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
_STORE_TIMEOUT = timedelta(seconds=30)  # for one beat of each rank
_POLL = 0.05  # seconds
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """Join the other processes that torchrun started. Yield a world of one if there is no torchrun.

    The backend is NCCL with one GPU for each process, or gloo for the device `cpu` and machines without a GPU. Raises
    UsageError if the environment does not come from torchrun, or if the GPUs cannot be used.
    """
    is_launched = "RANK" in os.environ or "WORLD_SIZE" in os.environ
    values = {name: os.environ.get(name, "") for name in _ALONE} if is_launched else _ALONE
    if not all(map(str.isdecimal, values.values())) or int(values["RANK"]) >= int(values["WORLD_SIZE"]):
        found = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise UsageError(f"the environment has {found}; start through torchrun, which sets fitting numbers")
    rank, size, local_rank, local_size = map(int, values.values())
    own = choose_device(device, local_rank, local_size)
    heartbeat = Heartbeat()
    if size > 1:
        heartbeat = _join(rank, size, own)
    if is_launched:
        # If the launcher dies, a run on one machine saves and stops. With several machines this process must end at
        # once: the other launchers restart the run without this machine (torchrun --nnodes=1:2).
        die_with_parent(signal.SIGTERM if size == local_size else signal.SIGKILL)
    if size > 1:
        # The store can be on another machine.
        heartbeat.watches_store, heartbeat.prints = size > local_size, local_rank == 0
        heartbeat.start()
    end = ""
    try:
        with World(rank, size, own, heartbeat).translate_errors() as world:
            yield world
    except BaseException as error:
        text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}".rstrip(": ")
        end = error.end if isinstance(error, RankLost) else text
        raise
    finally:
        if size > 1:
            heartbeat.stop(end)
            dist.destroy_process_group()


def _join(rank: int, size: int, device: torch.device) -> Heartbeat:
    """Connect to the other processes and return a heartbeat. Raises UsageError if that fails."""
    where = tuple(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    on_gpu = device.type == "cuda"
    try:
        found, _, _ = next(rendezvous("env://", rank, size, timeout=_COLLECTIVE_TIMEOUT))
        start = _name_start(found, rank, size)
        dist.init_process_group(
            # Gloo sends objects of the host, such as messages. NCCL sends tensors of GPUs.
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore(start, found),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
            device_id=device if on_gpu else None,
        )
        # The heartbeat has its own connection, because a waiting collective blocks the connection of the group.
        store = dist.TCPStore(where[0], int(where[1]), timeout=_STORE_TIMEOUT, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"rank {rank} cannot meet the other {size - 1} at {where[0]}:{where[1]}: {reason}; on one machine, use "
            "torchrun --standalone, which finds a free port; on several machines, give the name and an open port of "
            "the first machine, and set GLOO_SOCKET_IFNAME to the network device if a host name resolves to 127.0.1.1"
        ) from error
    own = dist.PrefixStore(f"heartbeat/{start}", store)
    return Heartbeat(own, rank, size, _COLLECTIVE_TIMEOUT.total_seconds())


def _name_start(store: dist.Store, rank: int, size: int) -> str:
    """Return a name that all ranks of this start share, and no rank of another start.

    The starts of a launch can share a store, which keeps the addresses of earlier starts. The count of restarts
    (TORCHELASTIC_RESTART_COUNT) does not name a start: each torchrun counts the failures of its own machine. So every
    rank draws a name, and rank 0 joins the names until all ranks find their own in the joined name. Raises RuntimeError
    after _COLLECTIVE_TIMEOUT.
    """
    own = uuid.uuid4().hex[:8]
    store.set(f"name/{rank}", own)
    deadline = time.monotonic() + _COLLECTIVE_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        if rank == 0:
            names = store.multi_get([f"name/{each}" for each in range(size)])
            store.set("start", b"-".join(names).decode())
        start = store.get("start").decode()
        if start.split("-")[rank : rank + 1] == [own]:
            store.set(f"{start}/{rank}", "")
            if store.check([f"{start}/{each}" for each in range(size)]):
                return start
        time.sleep(_POLL)
    raise RuntimeError("the ranks do not start at the same time")


def launcher_id() -> str | None:
    """Return a unique name of this process's launcher that stays through restarts; None without torchrun.

    The name of a launch (torchrun --rdzv-id) is not unique: people use the same name for the next launch.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    pid = os.getppid()
    started = ""  # The start time distinguishes a process from a later process with the same id.
    with suppress(OSError, IndexError):
        started = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return f"{name} {socket.gethostname()}:{pid}:{started}"


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
