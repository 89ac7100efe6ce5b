"""From the environment that torchrun sets to a `World`, and back."""

# The stores are public, but not listed as such.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from seresnext.distributed.devices import choose_device
from seresnext.distributed.heartbeat import Heartbeat
from seresnext.distributed.world import World
from seresnext.errors import Failure, RankLost, UsageError
from seresnext.process.signals import die_with_launcher, die_with_parent

# Longest wait of one rank for another, long enough for the slowest thing one rank does alone (the first compilation,
# a checkpoint on slow storage) and short enough that a frozen rank does not cost a night of rented GPUs.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
_STORE_TIMEOUT = timedelta(seconds=30)  # for one sign of life of each rank
# Where torchrun keeps the store, it has it before it starts anybody: who does not find it there never will. Otherwise
# rank 0 keeps it, and may take as long as the import of torch does on slow storage.
_TORCHRUNS_STORE_TIMEOUT = timedelta(minutes=1)


@contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """Join the other processes that torchrun started, or be a world of one without it.

    Uses NCCL with one GPU for each process; with the device `cpu`, or with no GPU, gloo on the CPU. Raises
    UsageError when the environment does not come from torchrun, or the GPUs cannot be used.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        with World(device=choose_device(device)).translate_errors() as world:
            yield world
        return
    rank, size, local_rank, local_size = (
        _number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if not 0 <= rank < size:
        raise UsageError(f"RANK={rank} is not below WORLD_SIZE={size}; start through torchrun, which sets both")
    own = choose_device(device, local_rank, local_size)
    # Without its launcher a run of one machine still saves. Where there are others, theirs start anew without this one
    # (torchrun --nnodes=1:2), and for that it has to be gone, not to ask them all to stop.
    death_signal = signal.SIGTERM if size == local_size else signal.SIGKILL
    if size == 1:
        die_with_parent(death_signal)
        with World(0, 1, local_rank, own).translate_errors() as world:
            yield world
        return
    die_with_launcher()  # Nothing can be saved before all have met.
    heartbeat = _join(rank, size, own)
    die_with_parent(death_signal)
    heartbeat.start()
    end = ""
    try:
        with World(rank, size, local_rank, own, heartbeat).translate_errors() as world:
            yield world
    except RankLost as lost:
        end = lost.end  # It came of another rank's end mostly, which is that rank's news.
        raise
    except BaseException as error:
        end = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}".rstrip(": ")
        raise
    finally:
        heartbeat.stop(end)
        dist.destroy_process_group()


def _join(rank: int, size: int, device: torch.device) -> Heartbeat:
    """Meet the other processes. Raises UsageError where they cannot be met."""
    where = tuple(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    on_gpu = device.type == "cuda"
    # torch serves all starts of a launch from one store and would find the addresses of an earlier start in it.
    start = f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        patience = _TORCHRUNS_STORE_TIMEOUT if of_torchrun else _COLLECTIVE_TIMEOUT
        found, _, _ = next(rendezvous("env://", rank, size, timeout=patience))
        found.set_timeout(_COLLECTIVE_TIMEOUT)  # Now for the other ranks, which still import torch perhaps.
        dist.init_process_group(
            # Gloo beside NCCL carries what lives on the host, such as messages.
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore(start, found),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
            device_id=device if on_gpu else None,
        )
        # A connection of its own: the group's is held by whoever waits for something.
        store = dist.TCPStore(where[0], int(where[1]), timeout=_STORE_TIMEOUT, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise UsageError(
            f"rank {rank} cannot meet the other {size - 1} at {where[0]}:{where[1]}: {what}; with "
            "torchrun --standalone a free port is found; over several machines the port must be open, and the address "
            "that of the first"
        ) from error
    own = dist.PrefixStore(f"heartbeat/{start}", store)
    return Heartbeat(own, rank, size, _COLLECTIVE_TIMEOUT.total_seconds())


def launcher() -> str | None:
    """Return a name of this process's launcher that stays through restarts and is unique; None without torchrun.

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


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"the environment has {name}={text!r}, not a number; start through torchrun, which sets it")
    return int(text)
