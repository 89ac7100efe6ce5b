import hashlib
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from seresnext.data.augment.crop import RandomResizedCrop
from seresnext.data.augment.erase import RandomErasing
from seresnext.data.augment.progressive import ImageSizeSchedule
from seresnext.data.batches import Batch, BatchSource, TrainImages
from seresnext.data.decode.regions import HAS_NVIMGCODEC
from seresnext.data.formats import open_reader
from seresnext.data.loading.loader import evaluation_keys, open_batches, train_keys
from seresnext.data.order import BatchKey, Order
from seresnext.data.readers import Reader
from seresnext.errors import DataError
from seresnext.process.signals import STOP_SIGNALS

TRANSFORM = RandomResizedCrop(16, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")
TOTAL = 9  # Steps of the tests' runs: three epochs of three.


def read_all(source: BatchSource, keys: Iterator[BatchKey], workers: int = 0) -> list[Batch]:
    with open_batches(source, keys, workers=workers, timeout=60, pin_memory=False) as batches:
        return list(batches)


Seen = list[tuple[int, int, int, bool, str]]


def seen(batches: list[Batch]) -> Seen:
    """Step, image, label, flip and hash of the pixels of every image."""
    return [
        (batch.step, index, label, flip, hashlib.sha256(pixels.numpy().tobytes()).hexdigest())
        for batch in batches
        for pixels, label, flip, index in zip(
            batch.images, batch.labels.tolist(), batch.flips.tolist(), batch.indices.tolist(), strict=True
        )
    ]


def train(reader: Reader, *, workers: int = 0, world: int = 1, start: int = 0, seed: int = 5) -> Seen:
    """Return the images of all ranks of a world, in the order of global batches."""
    ranks = []
    for rank in range(world):
        order = Order(len(reader), global_size=8, micro_size=2, seed=seed)
        own = range(rank * order.replicas // world, (rank + 1) * order.replicas // world)
        source = TrainImages(reader, TRANSFORM, seed=seed, max_pixels=10**6)
        ranks.append(seen(read_all(source, train_keys(order, own, start, TOTAL), workers)))
    return [image for step in range(start, TOTAL) for rank in ranks for image in rank if image[0] == step]


@pytest.fixture(scope="module")
def straight(reader: Reader) -> Seen:
    """The images of a run in one process without workers."""
    return train(reader)


def test_a_run_sees_every_epoch_once_and_each_time_other_crops(reader: Reader, straight: Seen):
    assert len(straight) == 8 * TOTAL
    for epoch in range(3):
        images = [image for image in straight if image[0] // 3 == epoch]
        assert len({image[1] for image in images}) == 24
        assert all(label == reader.labels[index] for _, index, label, _, _ in images)
    assert len({image[4] for image in straight}) == len(straight)
    assert {image[3] for image in straight} == {True, False}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_is_the_same_with_any_number_of_workers(reader: Reader, straight: Seen, workers: int):
    assert train(reader, workers=workers) == straight


@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_are_the_same_on_any_number_of_ranks(reader: Reader, straight: Seen, world: int):
    assert train(reader, world=world) == straight


@pytest.mark.parametrize("start", [1, 4, TOTAL - 1, TOTAL])
def test_a_run_that_starts_later_sees_the_rest(reader: Reader, straight: Seen, start: int):
    assert train(reader, start=start, workers=2, world=2) == [image for image in straight if image[0] >= start]


def test_a_run_is_the_same_with_either_decoder_and_any_number_of_workers(tiny_image_folder):
    reader = open_reader(tiny_image_folder(per_class=9), "train")

    def run(workers: int, fast: bool) -> Seen:
        source = TrainImages(reader, TRANSFORM, seed=5, max_pixels=10**6, fast=fast)
        return seen(read_all(source, train_keys(Order(len(reader), 8, 2, seed=5), range(4), 0, 6), workers))

    expected = run(0, False)
    assert len(expected) == 48
    decoders = [False, True] if HAS_NVIMGCODEC else [False]
    assert all(run(workers, fast) == expected for workers in (0, 1, 3) for fast in decoders)


def test_another_seed_is_another_run(reader: Reader, straight: Seen):
    assert train(reader, seed=6) != straight


def test_draws_of_a_worker_give_another_run(reader: Reader):
    class ByWorker(TrainImages):
        """A wrong source: crops are drawn from the generator of the worker."""

        def make(self, key: BatchKey) -> Batch:
            self._seed = int(torch.randint(2**30, ()))
            return super().make(key)

    def run(workers: int) -> Seen:
        order = Order(len(reader), 8, 2, seed=5)
        source = ByWorker(reader, TRANSFORM, seed=5, max_pixels=10**6)
        return seen(read_all(source, train_keys(order, range(4), 0, 3), workers))

    assert run(0) != run(3)


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
def test_torchs_randomness_of_the_trainer_is_not_touched(numbers, workers: int):
    before = torch.random.get_rng_state()
    read_all(numbers(lambda key: None), evaluation_keys(20, 4, 0, 1), workers)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_more_workers_than_cores_are_no_warning(numbers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_all(numbers(lambda key: None), evaluation_keys(8, 4, 0, 1), workers=9)) == 2


def test_workers_compute_on_one_thread_and_ignore_the_trainers_signals(numbers):
    def check(key: BatchKey) -> None:
        assert torch.get_num_threads() == 1
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)

    assert len(read_all(numbers(check), evaluation_keys(16, 4, 0, 1), workers=2)) == 4


def test_without_workers_signals_stay_as_they_are(numbers):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    read_all(numbers(lambda key: None), evaluation_keys(16, 4, 0, 1), workers=0)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def children() -> set[int]:
    """The process ids of this process's workers."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def test_workers_end_with_the_block_also_when_it_is_left_early(numbers):
    before = children()
    with open_batches(
        numbers(lambda key: None), evaluation_keys(10**6, 4, 0, 1), workers=3, timeout=60, pin_memory=False
    ) as b:
        assert next(b).indices.tolist() == [0, 1, 2, 3]
        assert len(children() - before) == 3
        started = time.monotonic()
    assert children() - before == set()
    assert time.monotonic() - started < 3


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
    command = start_command([sys.executable, script])
    command.wait_for(lambda: "loading" in command.output)
    assert len(command.alive()) == 4
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait(10)
    deadline = time.monotonic() + 10
    while command.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert command.alive() == []


# ------------------------------------------------------------------------------------------------- failures


def fails(
    numbers, act: Callable[[BatchKey], object], *, workers: int = 2, timeout: int = 60, pin_memory: bool = False
) -> DataError:
    """Return the error of batches whose worker calls `act`, and assert that all workers ended."""
    before = children()
    with (
        pytest.raises(DataError) as caught,
        open_batches(
            numbers(act), evaluation_keys(40, 4, 0, 1), workers=workers, timeout=timeout, pin_memory=pin_memory
        ) as b,
    ):
        for _ in b:
            pass
    assert children() - before == set()
    return caught.value


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_image_that_cannot_be_used_is_one_message_after_the_batches_before_it(numbers, workers: int):
    def act(key: BatchKey) -> None:
        if key.step == 5:
            raise DataError("train/cat/7.jpg is empty; restore the file or remove it")

    received = []

    def read() -> None:
        with open_batches(
            numbers(act), evaluation_keys(40, 4, 0, 1), workers=workers, timeout=60, pin_memory=False
        ) as batches:
            received.extend(batch.step for batch in batches)

    with pytest.raises(DataError) as caught:
        read()
    assert str(caught.value) == "train/cat/7.jpg is empty; restore the file or remove it"
    assert received == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_defect_of_ours_is_not_blamed_on_the_data(numbers, workers: int):
    def act(key: BatchKey) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        read_all(numbers(act), evaluation_keys(8, 4, 0, 1), workers)


def test_an_exception_of_the_trainer_passes_through(numbers):
    def train() -> None:
        source = numbers(lambda key: None)
        with open_batches(source, evaluation_keys(40, 4, 0, 1), workers=2, timeout=60, pin_memory=False) as batches:
            next(batches)
            raise RuntimeError("CUDA out of memory")

    before = children()
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
        train()
    assert children() - before == set()


def test_a_worker_that_is_killed_is_named_with_the_batch_that_is_missing(numbers):
    def act(key: BatchKey) -> None:
        if key.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    error = str(fails(numbers, act))
    # The speed of the other workers decides which batch was next.
    assert "a loader worker died while the trainer waited for the batch of step" in error
    assert "(pid" in error
    assert "reading these images: number 12, number 13, number 14, number 15." in error
    assert "lower data.workers" in error
    assert "--shm-size" in error


def test_a_worker_that_dies_while_the_trainer_computes_is_the_same_message(numbers):
    def act(key: BatchKey) -> None:
        if key.step == 3:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    def train() -> None:
        with open_batches(numbers(act), evaluation_keys(40, 4, 0, 1), workers=2, timeout=60, pin_memory=False) as b:
            next(b)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:  # Torch raises the error here.
                time.sleep(0.05)

    with pytest.raises(DataError, match=r"a loader worker died .* the batch of step 1, replica 0: .*Killed"):
        train()


def test_a_worker_that_dies_during_another_block_is_reported_by_its_own_block(numbers):
    """For example a training worker during validation: torch raises the error in the inner block."""

    def act(key: BatchKey) -> None:
        if key.step == 3:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    left = []

    def train() -> None:
        with open_batches(numbers(act), evaluation_keys(40, 4, 0, 1), workers=2, timeout=60, pin_memory=False) as b:
            next(b)
            quiet = numbers(lambda key: time.sleep(0.05))
            with open_batches(quiet, evaluation_keys(4000, 4, 0, 1), workers=1, timeout=60, pin_memory=False) as inner:
                try:
                    for _ in inner:
                        pass
                except RuntimeError as error:
                    left.append(str(error))
                    raise

    before = children()
    with pytest.raises(DataError, match=r"the batch of step 1, replica 0: .*these images: number 12, number 13"):
        train()
    assert "is killed by signal" in left[0]
    assert children() - before == set()


def test_a_worker_that_hangs_is_given_up_after_the_timeout_and_ended(numbers):
    started = time.monotonic()
    error = str(fails(numbers, lambda key: time.sleep(600 * (key.step == 3)), timeout=1))
    assert "no loader worker answered while the trainer waited for the batch of step 3, replica 0:" in error
    assert "reading these images: number 12, number 13, number 14, number 15." in error
    assert "runtime.loader_timeout" in error
    assert time.monotonic() - started < 12


@pytest.mark.parametrize("pin_memory", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_a_worker_that_is_frozen_is_given_up_with_batches_of_its_under_way(numbers, pin_memory: bool):
    """Received batches must not need the worker: torch receives a tensor by a handshake, and waits without end."""
    before = children()

    def freeze(key: BatchKey) -> None:
        if key.step == 3:
            time.sleep(0.5)  # The worker has sent the batch before.
            os.kill(os.getpid(), signal.SIGSTOP)

    def is_frozen(pid: int) -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    received = []

    def read() -> None:
        keys = evaluation_keys(40, 4, 0, 1)
        with open_batches(numbers(freeze), keys, workers=2, timeout=2, pin_memory=pin_memory) as batches:
            deadline = time.monotonic() + 20
            while not any(is_frozen(pid) for pid in children() - before):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            received.extend(batch.step for batch in batches)

    started = time.monotonic()
    with pytest.raises(DataError, match=r"^no loader worker answered .* the batch of step \d, replica 0:"):
        read()
    assert time.monotonic() - started < 20
    assert children() - before == set()
    if not pin_memory:
        assert received == [0, 1, 2]


def test_a_signal_that_comes_before_a_worker_ignores_it_is_ignored_too(numbers):
    """One to the whole process group, at the worst moment."""
    armed = [True]
    os.register_at_fork(after_in_child=lambda: armed and os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert len(read_all(numbers(lambda key: None), evaluation_keys(40, 4, 0, 1), 2)) == 10
        # The control: the signal ends a child that does not block it.
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        child.start()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
    finally:
        armed.clear()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_batches_that_go_to_a_gpu_need_shared_memory_with_a_message(numbers):
    # A limit on the size of files also limits shared memory. Only the worker has the limit.
    error = str(fails(numbers, lambda key: resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8)), pin_memory=True))
    assert "no shared memory" in error
    assert "--shm-size" in error


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(("workers", "pin_memory"), [(0, False), (1, False), (3, False), (3, True)])
def test_batches_of_growing_images_arrive_unchanged(reader: Reader, workers: int, pin_memory: bool):
    """Through pipes and through shared memory: every field, with pixels in channels-last memory."""
    order, sizes = Order(len(reader), 8, 4, seed=0), ImageSizeSchedule(16, 96, 0, 6)
    source = TrainImages(reader, TRANSFORM, seed=0, max_pixels=10**6, erasing=RandomErasing(1.0, (0.1, 0.2), (1, 2)))
    keys = list(train_keys(order, range(2), 0, 9, sizes))
    assert keys[0].image_size == TRANSFORM.image_size < 96 == keys[-1].image_size
    with open_batches(source, iter(keys), workers=workers, timeout=60, pin_memory=pin_memory) as batches:
        received = list(batches)
    assert len(received) == len(keys)
    for batch, key in zip(received, keys, strict=True):
        expected = source.make(key)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for value, wanted in zip(batch, expected, strict=True):
            assert torch.equal(value, wanted) if isinstance(wanted, torch.Tensor) else value == wanted
