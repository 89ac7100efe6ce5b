import shutil
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from torchvision.transforms import v2

from seresnext.data.augment.erase import EraseFill
from seresnext.data.batches import Batch
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.loading.prefetch import DeviceBatch, prefetch
from seresnext.data.order import Order
from seresnext.data.synthetic import SyntheticImages, SyntheticReader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
BOXES = torch.tensor([[0, 0, 0, 0], [2, 3, 4, 5], [0, 0, 13, 9], [12, 8, 1, 1]])


def batch(step: int = 0, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (size, 13, 9, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    indices = torch.arange(size)
    return Batch(images, indices + step, indices % 2 == 1, indices, step, 7)


def prefetched(batches: Iterator[Batch], **changed: object) -> Iterator[DeviceBatch]:
    usual = {"device": CPU, "dtype": torch.float32, "mean": MEAN, "std": STD, "channels_last": True}
    return prefetch(batches, **{**usual, **changed})  # type: ignore[arg-type]


def expected(host: Batch, dtype: torch.dtype = torch.float32, value: float = 0.0) -> torch.Tensor:
    """Mirrored, normalised and erased by torchvision."""
    images = [image.flip(2) if flip else image for image, flip in zip(host.images, host.flips, strict=True)]
    images = v2.functional.normalize(torch.stack(images).to(dtype) / 255, list(MEAN), list(STD))
    boxes = [] if host.boxes is None else host.boxes.tolist()
    for number, (top, left, height, width) in enumerate(boxes):
        fill = torch.full((3, height, width), value)
        images[number] = v2.functional.erase(images[number], top, left, height, width, fill)
    return images


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("boxes", [None, BOXES], ids=["whole", "erased"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_images_equal_torchvision(device: str, boxes, dtype: torch.dtype, tolerance: float, channels_last: bool):
    host = batch()._replace(boxes=boxes)
    settings = {"device": torch.device(device), "dtype": dtype, "channels_last": channels_last}
    (result,) = prefetched(iter([host]), fill=EraseFill(0.25, seed=0), **settings)
    assert torch.equal(host.images, batch().images)  # The pixels of the loader are left alone.
    torch.testing.assert_close(result.images.cpu(), expected(host, dtype, 0.25), rtol=0, atol=tolerance)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.images.is_contiguous(memory_format=layout)
    assert result.labels.tolist() == [0, 1, 2, 3]
    assert (result.step, result.replica) == (0, 7)


def test_batches_keep_their_order_and_the_last_may_be_short():
    hosts = [batch(0), batch(1), batch(2, size=1)]
    results = list(prefetched(iter(hosts)))
    assert [result.step for result in results] == [0, 1, 2]
    for result, host in zip(results, hosts, strict=True):
        torch.testing.assert_close(result.images, expected(host), rtol=0, atol=1e-6)
    assert list(prefetched(iter([]))) == []


def test_one_batch_is_ready_ahead():
    taken = []

    def hosts() -> Iterator[Batch]:
        for step in range(4):
            taken.append(step)
            yield batch(step)

    results = prefetched(hosts())
    assert next(results).step == 0
    assert taken == [0, 1]
    assert next(results).step == 1
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("erased", [False, True])
def test_two_batches_are_held_and_no_more(erased: bool):
    """The current and the next batch, whenever the loader or the trainer runs."""
    alive: list[weakref.ref[torch.Tensor]] = []
    of_loader: list[weakref.ref[torch.Tensor]] = []
    held = []

    def count() -> None:
        held.append(sum(reference() is not None for reference in alive))

    def hosts() -> Iterator[Batch]:
        for step in range(8):
            count()
            host = batch(step)._replace(boxes=BOXES if erased else None)
            of_loader.append(weakref.ref(host.images))
            yield host
            del host
            assert not any(reference() is not None for reference in of_loader)

    for result in prefetched(hosts(), fill=EraseFill("random", 0)):
        alive += [weakref.ref(result.images)]
        del result
        count()
    # A batch counts only after its delivery, so the count is one below the number of batches in memory.
    assert max(held) == 1


def test_waiting_for_the_loader_is_measured_and_other_time_is_not():
    def hosts() -> Iterator[Batch]:
        for step in range(3):
            time.sleep(0.2 * (step == 1))
            yield batch(step)

    waits = []
    for result in prefetched(hosts()):
        waits.append(result.data_wait)
        time.sleep(0.1)  # A step of training.
    assert 0.19 < waits[1] < 0.5
    assert max(waits[0], waits[2]) < 0.1


def test_noise_fills_the_boxes_and_depends_on_the_micro_batch():
    host = batch()._replace(boxes=BOXES)
    noisy, again, other = (
        next(prefetched(iter([host._replace(replica=replica)]), fill=EraseFill("random", seed=0))).images
        for replica in (7, 7, 8)
    )
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy[2], other[2])
    plain = expected(host._replace(boxes=None))
    torch.testing.assert_close(noisy[0], plain[0], rtol=0, atol=1e-6)
    changed = (noisy[1] - plain[1]).abs() > 1e-3
    assert changed[:, 2:6, 3:8].double().mean() > 0.99
    changed[:, 2:6, 3:8] = False
    assert not changed.any()


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.full
def test_one_compiled_function_gives_the_same_for_every_size():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compilations = torch._dynamo.utils.counters["stats"]
    # With 3 or 4 images, torch would confuse the number of images with channels or sides.
    hosts = [batch(0, size=6), batch(1, size=6), batch(2, size=5), larger(batch(3, size=6))]
    # Copied as for a GPU: the compiler treats views of other tensors differently.
    hosts = [host._replace(images=host.images.clone(), boxes=BOXES.repeat(2, 1)[: len(host.labels)]) for host in hosts]
    settings = {"fill": EraseFill(0.5, seed=0)}
    eager = list(prefetched(iter(hosts), **settings))
    for result, host in zip(prefetched(iter(hosts), compiled=True, **settings), eager, strict=True):
        torch.testing.assert_close(result.images, host.images, rtol=0, atol=1e-6)
        assert result.images.is_contiguous(memory_format=torch.channels_last)
    assert compilations["unique_graphs"] == 1


def larger(host: Batch) -> Batch:
    """Return the batch at twice the size, as with progressive sizes."""
    images = host.images.permute(0, 2, 3, 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return host._replace(images=images.permute(0, 3, 1, 2))


@pytest.mark.gpu
def test_a_gpu_computes_the_same_from_pinned_batches_of_workers_under_load():
    device = torch.device("cuda")
    source = SyntheticImages(SyntheticReader(512, 10), image_size=64, channels=3, seed=0)
    order = Order(512, 64, 64, seed=0)
    busy = torch.randn(2048, 2048, device=device)
    alone = [source.make(key) for key in train_keys(order, range(1), 0, 24)]
    with open_batches(source, train_keys(order, range(1), 0, 24), workers=2, timeout=60, pin_memory=True) as batches:
        count = 0
        for result, host in zip(prefetched(batches, device=device), alone, strict=True):
            for _ in range(20):
                busy = busy @ busy / 2048
            # The sum is queued behind that; memory given back too early would hold the next batch by then.
            total = result.images.sum(dtype=torch.float64)
            labels = result.labels.clone()
            del result
            want = expected(host)
            assert total.item() == pytest.approx(want.sum(dtype=torch.float64).item(), rel=1e-6, abs=1e-2)
            assert labels.tolist() == host.labels.tolist()
            count += 1
    assert count == 24


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # The compiler has threads, too.
def test_a_compiled_gpu_erases_like_torchvision():
    hosts = [host._replace(boxes=BOXES[: len(host.labels)]) for host in (batch(), larger(batch()), batch(0, 2))]
    settings = {"device": torch.device("cuda"), "fill": EraseFill(0.5, seed=0), "compiled": True}
    for result, host in zip(prefetched(iter(hosts), **settings), hosts, strict=True):
        torch.testing.assert_close(result.images.cpu(), expected(host, value=0.5), rtol=0, atol=1e-5)
        assert result.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_memory_of_a_gpu_does_not_grow_with_the_number_of_batches():
    device = torch.device("cuda")
    source = SyntheticImages(SyntheticReader(512, 10), image_size=128, channels=3, seed=0)
    order = Order(512, 64, 64, seed=0)
    size = 64 * 3 * 128 * 128 * 4
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    hosts = (source.make(key) for key in train_keys(order, range(1), 0, 100))
    for result in prefetched(hosts, device=device):
        result.images.mul_(2)
        torch.cuda.current_stream(device).synchronize()
    # Two batches, and the memory for making one.
    assert torch.cuda.max_memory_allocated(device) - before < 5 * size
