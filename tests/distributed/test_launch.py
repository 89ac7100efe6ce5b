"""The world for an environment of torchrun, for none, and for a broken one, and GPUs that torch does not see."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from unittest.mock import Mock

import pytest
import torch

from seresnext.distributed import World, choose_device, launch, launcher_id, open_world
from seresnext.distributed.launch import refuse_unseen_gpus
from seresnext.errors import UsageError
from seresnext.process.signals import FORK

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    """`environment(rank, size, local rank, local size)` sets the variables of torchrun, except those that are None."""

    def pretend(*values):
        for name, value in zip(NAMES, values, strict=True):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {"CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "first.example", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "die_with_parent", lambda death_signal: None)  # It would stay for all tests.
    pretend(None, None, None, None)
    return pretend


@pytest.mark.parametrize("values", [(None,) * 4, (0, 1, 0, 1)], ids=["without torchrun", "one process of torchrun"])
def test_a_world_of_one_needs_no_group(environment, values):
    environment(*values)
    with open_world() as world:
        assert world == World()
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, None, 0, 1), "the environment has RANK='0', WORLD_SIZE='', LOCAL_RANK='0', LOCAL_WORLD_SIZE='1'; start "),
        ((None, 2, 0, 1), "RANK='', WORLD_SIZE='2'"),
        ((0, 2, None, 1), "LOCAL_RANK=''"),
        ((0, 2, 0, None), "LOCAL_WORLD_SIZE=''"),
        (("one", 2, 0, 1), "RANK='one'"),
        ((-1, 2, 0, 1), "RANK='-1'"),
        ((2, 2, 0, 1), "RANK='2', WORLD_SIZE='2'"),
        ((0, 0, 0, 1), "RANK='0', WORLD_SIZE='0'"),
    ],
)
def test_an_environment_that_is_not_torchruns(environment, values, message):
    environment(*values)
    with pytest.raises(UsageError) as caught, open_world():
        pass
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------------ GPUs


@pytest.fixture
def gpus(environment, monkeypatch):
    """`gpus(2)` makes torch see two GPUs and returns the list of chosen GPUs."""
    chosen = []

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return pretend


@pytest.mark.parametrize(("wanted", "device", "is_chosen"), [("auto", "cuda:0", [0]), ("cpu", "cpu", [])])
def test_the_device_of_a_process_alone(gpus, wanted, device, is_chosen):
    chosen = gpus(2)
    with open_world(wanted) as world:
        assert world.device == torch.device(device)
    assert chosen == is_chosen


def test_more_processes_than_gpus(gpus, environment):
    chosen = gpus(2)
    environment(3, 4, 3, 4)
    with pytest.raises(UsageError, match=r"4 processes, but torch sees 2 GPUs.*--nproc_per_node=2"):
        open_world().__enter__()
    assert chosen == []


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize(
    ("values", "death"),
    [((3, 4, 1, 2), signal.SIGKILL), ((2, 4, 0, 2), signal.SIGKILL), ((3, 4, 3, 4), signal.SIGTERM)],
)
def test_each_process_its_gpu_its_backend_and_its_end(gpus, environment, monkeypatch, values, death, count):
    """If the launcher dies, a run on one machine stops, and a process of several machines is killed."""
    chosen, deaths, joined, left, heart = gpus(count), [], [], [], Mock(explain=lambda error: None)
    environment(*values)
    store = torch.distributed.HashStore()
    fakes = {
        "init_process_group": lambda *args, **options: joined.append((args, options)),
        "destroy_process_group": lambda: left.append(1),
        "TCPStore": lambda *args, **options: store,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.distributed, name, fake)
    monkeypatch.setattr(launch, "die_with_parent", deaths.append)
    monkeypatch.setattr(launch, "rendezvous", lambda *args, **options: iter([(store, 3, 4)]))
    monkeypatch.setattr(launch, "_name_start", lambda store, rank, size: f"start of {rank} of {size}")
    monkeypatch.setattr(launch, "Heartbeat", lambda *settings: heart)
    rank, size, local_rank, local_size = values
    with pytest.raises(ZeroDivisionError), open_world() as world:
        raise ZeroDivisionError
    assert (world.rank, world.size, deaths) == (rank, size, [death])
    assert left == [1]  # The group is destroyed after an error, too: an open group can keep a process from ending.
    ((backend,), options) = joined[0]
    assert (options["rank"], options["world_size"]) == (rank, size)
    options["store"].set("address", "mine")
    assert store.get(f"start of {rank} of {size}/address") == b"mine"
    device = torch.device("cuda", local_rank) if count else torch.device("cpu")
    assert (world.device, options["device_id"]) == (device, device if count else None)
    assert (backend, chosen) == (("cpu:gloo,cuda:nccl", [local_rank]) if count else ("gloo", []))
    assert 60 <= options["timeout"].total_seconds() <= 3600
    # The store can be on another machine. The first rank of each machine prints that the store is lost.
    assert (heart.watches_store, heart.prints) == (local_size < size, local_rank == 0)


def start(store, ranks, size):
    """Return the names that ranks of a start find, at the same time; each rank begins a little later."""
    with ThreadPoolExecutor() as pool:
        found = []
        for rank in ranks:
            found.append(pool.submit(launch._name_start, store, rank, size))
            time.sleep(0.1)
        return [each.result() for each in found]


@pytest.fixture
def store(monkeypatch):
    """A store in which ranks wait for two seconds."""
    monkeypatch.setattr(launch, "_COLLECTIVE_TIMEOUT", timedelta(seconds=2))
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=2))
    return store


def test_the_ranks_of_a_start_share_a_name_that_no_other_start_has(store):
    """Machines that start again count their own failures, and share the store of the first start."""
    names = [start(store, ranks, len(ranks)) for ranks in ([0, 1, 2], [2, 0, 1], [1, 0], [0, 1, 2, 3])]
    assert [len(set(found)) for found in names] == [1, 1, 1, 1]
    assert len({found[0] for found in names}) == 4


def test_ranks_of_another_start_are_not_waited_for_without_end(store, monkeypatch):
    """Control: the other rank belongs to an earlier start."""
    start(store, [0, 1], 2)
    monkeypatch.setattr(launch, "_COLLECTIVE_TIMEOUT", timedelta(seconds=0.3))
    for rank in (0, 1):
        with pytest.raises(RuntimeError, match="do not start at the same time"):
            start(store, [rank], 2)


def test_other_ranks_that_cannot_be_reached(environment, monkeypatch):
    def refuse(*args, **options):
        raise torch.distributed.DistNetworkError("The server socket has failed to listen: address in use\nmore")

    monkeypatch.setattr(launch, "rendezvous", refuse)
    environment(1, 4, 1, 4)
    with pytest.raises(UsageError, match=r"rank 1 cannot meet the other 3 at first.example:29500: .*address in use; "):
        open_world().__enter__()


def test_the_id_of_a_launcher_is_unique(monkeypatch):
    """Users repeat an --rdzv-id, torchrun's default id is `none`, and process ids repeat, too."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "100")
    found = FORK.SimpleQueue()
    for _ in range(2):
        process = FORK.Process(target=lambda: found.put(launcher_id()), daemon=True)
        process.start()
        process.join()
    assert found.get() == found.get() != launcher_id()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert re.fullmatch(r"100 .*:1:\d+", launcher_id())
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launcher_id() is None


DRIVERS = {
    "535.104.05": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\nGCC version: 12",
    "580.65.06": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@x)",
    "470.82": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82  Thu Sep 9 00:00:00 UTC 2021",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(gpus, driver, cuda) -> message`: the refusal on a machine with a torch for this CUDA, or no text."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    dev, file = tmp_path / "dev", tmp_path / "version"
    dev.mkdir()

    def fail():
        raise RuntimeError("The driver is too old (found version 11040). Please update it by downloading: http://x")

    monkeypatch.setattr(torch.cuda, "init", fail)

    def refused(gpus=2, driver="535.104.05", cuda="13.0"):
        for name in ("nvidiactl", "nvidia-uvm", "null", *(f"nvidia{number}" for number in range(gpus))):
            (dev / name).touch()
        file.write_text(DRIVERS.get(driver, ""))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        try:
            refuse_unseen_gpus(dev, file)
        except UsageError as error:
            return str(error)
        return ""

    return refused


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_old_driver(machine, driver):
    message = machine(driver=driver)
    texts = ("nvidia0, nvidia1;", f"driver {driver})", "CUDA 13.0", "too old (found version 11040)", "--device cpu")
    assert [text for text in texts if text not in message] == []
    assert "downloading" not in message


def test_a_cpu_build(machine):
    message = machine(cuda=None)
    assert f"torch {torch.__version__} (a CPU build)" in message
    assert "535.104.05" in message


def test_no_visible_driver_and_no_gpu(machine):
    """A container without a GPU has the driver of the host in /proc, too, and uses the CPU."""
    assert machine(gpus=0) == ""
    assert "driver unknown" in machine(driver="")


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [("", True), ("-1", True), (" ", True), ("-1,0", True), ("NoDevFiles", True), ("9", False), ("0,1", False)],
)
def test_hidden_gpus_are_not_used(machine, monkeypatch, visible, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    message = machine()
    assert (message == "") is hidden
    if not hidden:
        assert f"CUDA_VISIBLE_DEVICES (now {visible})" in message


def test_only_auto_looks_for_gpus(monkeypatch):
    looks = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("seresnext.distributed.launch.refuse_unseen_gpus", lambda: looks.append(1))
    assert choose_device("cpu") == torch.device("cpu")
    assert looks == []
    assert choose_device("auto") == torch.device("cpu")
    assert looks == [1]
