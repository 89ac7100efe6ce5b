"""Real steps, their memory, and the memory that a process may use."""

import pytest
import torch

from seresnext.check import steps as steps_module
from seresnext.check.steps import MemoryUse, Steps, Use, free_memory, training_data
from seresnext.distributed import World
from seresnext.recipe.load import load_recipe

CPU = torch.device("cpu")
GIB = 2**30


def test_the_prediction_is_a_line_through_the_two_largest_steps():
    found = MemoryUse((Use(2, 1.0, 999), Use(4, 1.0, 1000), Use(8, 1.0, 1400)), capacity=2000)
    assert [found.predict(micro) for micro in (4, 8, 12, 16)] == [1000, 1400, 1800, 2200]
    assert [found.fits(micro) for micro in (12, 13)] == [True, False]  # Nine tenths of the capacity.
    assert MemoryUse((Use(4, 1.0, 1000),), 9000).predict(8) == 2000
    assert not MemoryUse((), 9000).fits(1)


class Made(Steps):
    """Steps that need `per_image` bytes an image and some more, up to a limit, and `seconds` an image."""

    def __init__(self, per_image, limit, seconds=0.0, device="cpu"):
        self._world, self.taken = World(device=torch.device(device)), []
        self._per_image, self._limit, self._seconds = per_image, limit, seconds

    def use(self, micro):
        self.taken.append(micro)
        size = 100 + self._per_image * micro
        return Use(micro, self._seconds * micro, size) if size <= self._limit else None


def test_steps_grow_to_the_wanted_size_if_they_fit():
    made = Made(10, limit=10_000)
    found = made.uses(24, 10_000, 60)
    assert made.taken == [2, 4, 8, 16, 24]
    assert found.predict(24) == 340
    assert made.largest(found, [6, 12, 24, 96, 890, 891]) == 890  # 0.9 x 10,000 = 9,000 = 100 + 10 x 890


@pytest.mark.parametrize(("capacity", "seconds", "taken"), [(300, 60, [2, 4, 8, 16]), (10_000, -1, [2, 4])])
def test_steps_stop_before_the_memory_or_the_time_ends(capacity, seconds, taken):
    made = Made(10, limit=capacity, seconds=0.01)
    assert made.uses(128, capacity, seconds).uses[-1].micro == taken[-1]
    assert made.taken == taken


def test_a_gpu_confirms_the_largest_size_by_a_real_step():
    made = Made(10, limit=900, device="cuda")  # The prediction permits 800 bytes more than the device.
    found = made.uses(32, 2000, 60)
    assert made.taken == [8, 16, 32]
    assert made.largest(found, [32, 64, 128, 256]) == 64
    assert made.taken[3:] == [128, 64]
    assert made.largest(found, [256]) is None


def test_a_lack_of_memory_is_no_error_and_another_error_is(small, monkeypatch):
    steps = Steps(small(), World())
    monkeypatch.setattr(steps, "take", lambda micro: torch.empty(1 << 50))
    assert steps.use(4) is None
    assert steps.uses(4, GIB, 60).uses == ()
    monkeypatch.setattr(steps, "take", lambda micro: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        steps.use(4)


SETTINGS = {
    "mixup": ["mix.mixup=0.2"],
    "average": ["ema={}"],
    "progressive": ["data.progressive={min_size: 32, max_size: 64, end_ramp: 2ep}"],
    "shards": ["data.format=shards", "data.shuffle_shards=3"],
    "weights of classes": ["loss.class_weights={cat: 2}"],
    "frozen for a while": ["model.weights=nowhere.pth", "model.frozen=[layer0]", "model.frozen_until=1st"],
    "weights": ["model.weights=nowhere.pth", "model.reset_head=true", "model.frozen=[layer0]"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_is_that_of_the_recipe(small, settings):
    recipe = small("data.image_size=64", *settings)
    steps = Steps(recipe, World(), accumulation=2)
    seen = []
    steps.run.model.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    assert steps.take(3) > 0
    assert seen == [(3, 3, 64, 64)] * 2
    assert steps.run.optimizer.state  # The step has updated the weights.
    assert (steps.run.step.mix is not None, steps.run.ema is not None) == (recipe.mix.mixup > 0, recipe.ema is not None)
    assert steps.run.recipe.runtime.compile is False
    spread = steps.repeat(2, 0.0)
    assert len(seen) == 2 + 2 * 4
    assert spread.low <= spread.median <= spread.high


def test_more_images_need_more_memory(small):
    """The oracle counts the bytes of the activations that autograd keeps."""
    steps = Steps(small("data.image_size=96"), World())
    saved = {}
    for micro in (8, 32):
        saved[micro] = 0

        def pack(tensor, micro=micro):
            saved[micro] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            steps.take(micro)
    first, second = steps.use(8), steps.use(32)
    assert first
    assert second
    assert second.bytes - first.bytes > 0.3 * (saved[32] - saved[8]) > 0


def test_the_memory_of_a_container_limits_that_of_the_host(tmp_path):
    host = free_memory(CPU, 1, tmp_path)
    assert free_memory(CPU, 2, tmp_path) < host
    own = steps_module._number(steps_module.Path("/proc/self/status"), "VmRSS:") * 1024
    files = {"memory.max": "max", "memory.current": str(3 * GIB), "memory.stat": f"anon 5\ninactive_file {GIB}\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert free_memory(CPU, 1, tmp_path) > own + 0.5 * (host - own)  # No limit.
    (tmp_path / "memory.max").write_text(str(2 * GIB + (256 << 20)))
    assert abs(free_memory(CPU, 1, tmp_path) - own - (256 << 20)) < 64 << 20
    (tmp_path / "memory.max").write_text(str(GIB))
    assert free_memory(CPU, 1, tmp_path) - own < 64 << 20


def test_progressive_images_count_with_their_largest_size():
    assert training_data(load_recipe("seresnext50_strong").recipe).data.image_size == 192
    assert training_data(load_recipe("seresnext50").recipe).data.image_size == 224


def test_a_container_that_hides_the_peak_has_the_peak_of_the_process(monkeypatch):
    monkeypatch.setattr(steps_module, "_number", lambda *_: 0)
    assert steps_module._peak(CPU) > 1 << 20
