import math
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import until
from launcher import PYTHON

from seresnext.data.augment.crop import ImageSizeSchedule
from seresnext.data.batches import Batch, TrainImages
from seresnext.data.decode.pillow import Decoding
from seresnext.data.loading.loader import evaluation_keys, open_batches, train_keys
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.errors import DataError
from seresnext.process.signals import STOP_SIGNALS
from seresnext.recipe.schema import AugmentSection, ErasingSection

Act = Callable[[BatchKey], object]


class Numbers:
    """Batches with the image numbers as pixels. The worker calls `act(key)` for each batch."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self.reader = self

    def name(self, index: int) -> str:
        return f"number {index}"

    def make(self, key: BatchKey) -> Batch:
        self._act(key)
        indices = torch.from_numpy(key.indices.copy())
        images = (indices % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, indices, torch.zeros(len(indices), dtype=torch.bool), indices.clone(), *key[:2])


def opened(act: Act = lambda key: None, images: int = 40, workers: int = 2, timeout: int = 60, pin: bool = False):
    """Open batches of four images. The worker calls `act(key)` for each batch."""
    keys = evaluation_keys(images, 4, 0, 1)
    return open_batches(Numbers(act), keys, workers=workers, timeout=timeout, pin_memory=pin)


@pytest.fixture
def all_end() -> Iterator[Callable[[], set[int]]]:
    """`all_end()` returns the process ids of the test's workers. At the end of the test, no worker is left."""

    def children() -> set[int]:
        return {process.pid for process in multiprocessing.active_children() if process.pid} - before

    before: set[int] = set()
    before = children()
    yield children
    assert children() == set()


@pytest.mark.parametrize("count", [1, 7, 8, 25])
def test_every_image_is_evaluated_once_in_the_same_batches_at_any_world_size(count: int):
    def dealt(world: int) -> list[list[int]]:
        keys = [list(evaluation_keys(count, 4, rank, world)) for rank in range(world)]
        assert max(map(len, keys)) == math.ceil(math.ceil(count / 4) / world)
        assert all(key.step % world == rank for rank, own in enumerate(keys) for key in own)
        return [key.indices.tolist() for key in sorted((k for own in keys for k in own), key=lambda k: k.step)]

    alone = dealt(1)
    assert [index for batch in alone for index in batch] == list(range(count))
    assert all(len(batch) == 4 for batch in alone[:-1])
    for world in (2, 3, 5):
        assert dealt(world) == alone


# ------------------------------------------------------------------------------------- the process that loads


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_randomness_and_the_signals_of_the_trainer_are_not_touched(workers: int):
    def state() -> list[object]:
        return [torch.random.get_rng_state().tolist(), *map(signal.getsignal, STOP_SIGNALS)]

    before = state()
    with opened(workers=workers) as batches:
        assert len(list(batches)) == 10
    assert state() == before


def test_more_workers_than_cores_are_no_warning():
    with warnings.catch_warnings(action="error"), opened(images=8, workers=9) as batches:
        assert len(list(batches)) == 2


def test_workers_compute_on_one_thread_and_ignore_the_trainers_signals():
    def check(key: BatchKey) -> None:
        assert torch.get_num_threads() == 1
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)

    with opened(check) as batches:
        assert len(list(batches)) == 10


@pytest.mark.parametrize("seconds", [0, 600])
def test_workers_end_with_the_block_when_it_is_left_early(all_end, seconds: int, monkeypatch: pytest.MonkeyPatch):
    """Workers that hang ignore SIGTERM, which torch sends."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    with opened(lambda key: time.sleep(seconds * (key.step > 0)), images=10**6, workers=3) as batches:
        assert next(batches).indices.tolist() == [0, 1, 2, 3]
        assert len(all_end()) == 3
        started = time.monotonic()
    assert all_end() == set()
    assert time.monotonic() - started < 30


def test_workers_die_with_a_trainer_that_is_killed(start_command, tmp_path: Path):
    script = tmp_path / "run.py"
    # Workers that are busy, as with a disk that hangs: torch's own look-out for the parent is between batches.
    script.write_text(
        "import time\n"
        "from seresnext.data.loading.loader import evaluation_keys, open_batches\n"
        "from seresnext.data.synthetic import SyntheticImages, SyntheticReader\n"
        "class Hanging(SyntheticImages):\n"
        "    def make(self, key):\n"
        "        time.sleep(600 * (key.step > 0))\n"
        "        return super().make(key)\n"
        "source = Hanging(SyntheticReader(10**6, 2), 8, 3, 0)\n"
        "keys = evaluation_keys(10**6, 4, 0, 1)\n"
        "with open_batches(source, keys, workers=3, timeout=500, pin_memory=False) as batches:\n"
        "    next(batches)\n"
        "    print('loading', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = start_command([PYTHON, script])
    command.wait_for(lambda: "loading" in command.output)
    assert len(command.alive()) == 4
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait(10)
    until(lambda: command.alive() == [])


# ------------------------------------------------------------------------------------------------- failures


def fails(
    act: Act = lambda key: None,
    error: type[Exception] = DataError,
    read: Callable[[Iterator[Batch]], object] = list,
    **settings,
) -> str:
    """Return the error of batches whose worker calls `act`."""
    with pytest.raises(error) as caught, opened(act, **settings) as batches:
        read(batches)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_image_that_cannot_be_used_is_one_message_after_the_batches_before_it(workers: int):
    def act(key: BatchKey) -> None:
        if key.step == 5:
            raise DataError("train/cat/7.jpg is empty; restore the file or remove it")

    received = []
    with pytest.raises(DataError) as caught, opened(act, workers=workers) as batches:
        received.extend(batch.step for batch in batches)
    assert str(caught.value) == "train/cat/7.jpg is empty; restore the file or remove it"
    assert received == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_defect_of_ours_is_not_blamed_on_the_data(workers: int):
    def act(key: BatchKey) -> None:
        raise RuntimeError("a defect")

    assert "a defect" in fails(act, RuntimeError, workers=workers)


@pytest.mark.usefixtures("all_end")
def test_an_exception_of_the_trainer_passes_through():
    def read(batches: Iterator[Batch]) -> None:
        next(batches)
        raise RuntimeError("CUDA out of memory")

    assert fails(error=RuntimeError, read=read) == "CUDA out of memory"


def killed_at_3(seconds: float) -> Act:
    """Return an action that kills the worker of step 3, a little later."""

    def act(key: BatchKey) -> None:
        if key.step == 3:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)

    return act


@pytest.mark.usefixtures("all_end")
def test_a_worker_that_is_killed_is_named_with_the_batch_that_is_missing():
    error = fails(killed_at_3(0))
    # The speed of the other workers decides which batch was next, and which batches of the worker were under way.
    assert "a loader worker died while the trainer waited for the batch of step" in error
    assert "number 12, number 13, number 14, number 15" in error
    assert "number 8," not in error  # a batch of the other worker
    for part in ("(pid", "lower data.workers", "--shm-size"):
        assert part in error


def test_a_worker_that_dies_while_the_trainer_computes_is_the_same_message():
    def read(batches: Iterator[Batch]) -> None:
        next(batches)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # Torch raises the error here.
            time.sleep(0.05)

    error = fails(killed_at_3(0.5), read=read)
    assert error.startswith("a loader worker died while the trainer waited for the batch of step 1, replica 0: ")
    assert "Killed" in error


@pytest.mark.usefixtures("all_end")
def test_a_worker_that_dies_during_another_block_is_reported_by_its_own_block():
    """For example a training worker during validation: torch raises the error in the inner block."""

    def read(batches: Iterator[Batch]) -> None:
        next(batches)
        error = fails(lambda key: time.sleep(0.05), RuntimeError, images=4000, workers=1)
        assert "is killed by signal" in error
        raise RuntimeError(error)

    error = fails(killed_at_3(0.5), read=read)
    assert "the batch of step 1, replica 0: " in error
    assert "number 12, number 13" in error


@pytest.mark.usefixtures("all_end")
def test_a_worker_that_hangs_is_given_up_after_the_timeout_and_ended():
    started = time.monotonic()
    error = fails(lambda key: time.sleep(600 * (key.step == 3)), timeout=1)
    assert "no loader worker answered while the trainer waited for the batch of step 3, replica 0:" in error
    assert "these images: number 12, number 13, number 14, number 15." in error
    assert "runtime.loader_timeout" in error
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("pin", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_a_worker_that_is_frozen_is_given_up_with_batches_of_its_under_way(all_end, pin: bool):
    """Received batches must not need the worker: torch receives a tensor by a handshake, and waits without end."""

    def freeze(key: BatchKey) -> None:
        if key.step == 3:
            time.sleep(0.5)  # The worker has sent the batch before.
            os.kill(os.getpid(), signal.SIGSTOP)

    def is_frozen(pid: int) -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def read(batches: Iterator[Batch]) -> None:
        while not any(map(is_frozen, all_end())):
            assert time.monotonic() - started < 60
            time.sleep(0.05)
        received.extend(batch.step for batch in batches)

    received, started = [], time.monotonic()
    error = fails(freeze, read=read, timeout=2, pin=pin)
    assert "no loader worker answered while the trainer waited for the batch of step " in error
    assert time.monotonic() - started < 60
    assert all_end() == set()
    if not pin:
        assert received == [0, 1, 2]


def test_a_signal_that_comes_before_a_worker_ignores_it_is_ignored_too():
    """One to the whole process group, at the worst moment."""
    armed = [True]
    os.register_at_fork(after_in_child=lambda: armed and os.kill(os.getpid(), signal.SIGTERM))
    try:
        with opened() as batches:
            assert len(list(batches)) == 10
        # The control: the signal ends a child that does not block it.
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        child.start()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
    finally:
        armed.clear()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_batches_that_go_to_a_gpu_need_shared_memory_with_a_message(tmp_path):
    def limit(key: BatchKey) -> None:
        (tmp_path / f"torch_{os.getpid()}").touch()
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))  # A limit on the size of files also limits shared memory.

    error = fails(limit, pin=True)
    for left in [left for worker in tmp_path.iterdir() for left in Path("/dev/shm").glob(f"{worker.name}_*")]:
        left.unlink()  # torch does not remove a file that is too large.
    assert "no shared memory" in error
    assert "--shm-size" in error


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(("workers", "pin_memory"), [(0, False), (1, False), (3, False), (3, True)])
def test_batches_of_growing_images_arrive_unchanged(reader: Reader, workers: int, pin_memory: bool):
    """Through pipes and through shared memory: every field, with pixels in channels-last memory."""
    order, sizes = Order(len(reader), 8, 4, seed=0), ImageSizeSchedule(16, 96, 0, 6)
    augment = AugmentSection(erasing=ErasingSection(probability=1, scale=(0.1, 0.2), ratio=(1, 2)))
    source = TrainImages(reader, augment, 16, seed=0, decoding=Decoding(10**6))
    keys = list(train_keys(order, range(2), 0, 9, sizes))
    assert keys[0].image_size == 16 < 96 == keys[-1].image_size
    with open_batches(source, iter(keys), workers=workers, timeout=60, pin_memory=pin_memory) as batches:
        received = list(batches)
    assert len(received) == len(keys)
    for batch, key in zip(received, keys, strict=True):
        expected = source.make(key)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for value, wanted in zip(batch, expected, strict=True):
            assert torch.equal(value, wanted) if isinstance(wanted, torch.Tensor) else value == wanted
