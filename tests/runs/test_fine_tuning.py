"""Fine-tuning on unequal classes: stages that are frozen at first, rates by stage, balanced sampling, class weights.

As in test_exact.py, one set of processes does all trainings of a world size.
"""

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from exactness import Lab, Training

pytestmark = [pytest.mark.runs, pytest.mark.full]

# An epoch has 3 steps. The stages are frozen for 4 steps, so the thaw comes within the second epoch.
RECIPE = """
model: {{name: seresnext26, num_classes: 3, drop_rate: 0.2, drop_path_rate: 0.2}}
data: {{root: {images}, image_size: 32, workers: 0, sampling: balanced}}
augment: {{crop_scale: [0.5, 1.0]}}
mix: {{mixup: 0.2}}
batch: {{global_size: 16, micro_size: 4}}
length: 7st
optimizer: {{lr: 0.01, head_lr: 0.05, layer_decay: 0.8, clip_norm: 5.0}}
schedule: {{name: cosine, warmup: 2st}}
loss: {{class_weights: {{class_1: 2}}}}
ema: {{decay: 0.9}}
evaluation: {{every: 1ep, batch_size: 2}}
checkpoint: {{every: 1st, keep: 20}}
logging: {{every: 1st}}
runtime: {{precision: fp64}}
"""
FROZEN = ("model.reset_head=true", "model.frozen=[layer0, layer1, layer3]", "model.frozen_until=4st")
STOPS = (3, 4, 5)  # completed steps: before the thaw, at the thaw, after the first step of all stages


@pytest.fixture(scope="session")
def labs(tiny_image_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Lab]:
    """`labs(world)`: the lab of a world size, made once. Class 2 has a third of the images."""
    images = tmp_path_factory.mktemp("images") / "root"
    shutil.copytree(tiny_image_folder(classes=3, per_class=24, size=40, val_per_class=3), images)
    for file in sorted((images / "train" / "class_2").iterdir())[8:]:
        file.unlink()

    @cache
    def get(world: int) -> Lab:
        folder = tmp_path_factory.mktemp(f"world{world}")
        lab = Lab(world, folder, RECIPE.format(images=images))
        weights = f"model.weights={folder / 'source' / 'checkpoints' / 'last.safetensors'}"
        adamw = ("optimizer={name: adamw, lr: 0.001, layer_decay: 0.8}",)
        trainings = [Training("source", settings=("length=2st",))]
        for name, settings in (("sgd", FROZEN), ("adamw", (*FROZEN, *adamw)), ("never", FROZEN[:2])):
            run = partial(Training, settings=(weights, *settings))
            trainings.append(run(name))
            for step in STOPS:
                trainings += [run(f"{name} {step}", crash_at=step), run(f"{name} {step}")]
        lab.perform(*trainings)
        return lab

    return get


@pytest.fixture(params=[1, 2, 4], ids="world{}".format)
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    return labs(request.param)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", ["sgd", "adamw", "never"])
def test_a_resume_around_the_thaw_is_bit_for_bit_the_uninterrupted_run(lab, name, stop):
    killed, resumed = lab.seen[f"{name} {stop}"]
    assert (killed.progress["step"], len(resumed.losses)) == (stop, 7 - stop)
    assert lab.differences(f"{name} {stop}", name) == []
    assert all(seen.same_on_all_ranks for seen in lab.seen[f"{name} {stop}"][1:])


def test_stages_are_frozen_until_the_step(lab):
    """The control: without `frozen_until`, the stages stay frozen, and the run has the same first 4 steps."""
    source, whole, never = (lab.result(run) for run in ("source", "sgd", "never"))
    stages = ("layer0.", "layer1.", "layer3.")
    for part in ("model.", "ema."):
        names = {name.removeprefix(part) for name in whole if name.startswith(part)}
        kept = {name for name in names if torch.equal(never[part + name], source["ema." + name])}
        assert kept == {name for name in names if name.startswith(stages)}
        assert not [name for name in kept if torch.equal(whole[part + name], source["ema." + name])]
    trained = {name.removeprefix("optimizer.momentum.") for name in never if name.startswith("optimizer.momentum.")}
    assert trained
    assert not [name for name in trained if name.startswith(stages)]
    assert lab.seen["sgd"][0].losses[:4] == lab.seen["never"][0].losses[:4]
    assert lab.seen["sgd"][0].losses[4] != lab.seen["never"][0].losses[4]  # BatchNorm's statistics are of the batch.


def test_adamw_counts_the_steps_of_late_stages_from_the_thaw(lab):
    found = lab.result("adamw")
    assert (found["optimizer.step"], found["optimizer.later_step"]) == (7, 3)
    assert "optimizer.exp_avg.layer0.conv1.weight" in found


def test_two_ranks_compute_what_one_computes(labs):
    for name in ("sgd", "adamw"):
        one, two = labs(1).result(name), labs(2).result(name)
        assert labs(1).seen[name][0].inputs == labs(2).seen[name][0].inputs
        losses = [torch.tensor(labs(world).seen[name][0].losses, dtype=torch.float64) for world in (1, 2)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)
        weights = [name for name in one if name.startswith(("model.", "optimizer.")) and "num_batches" not in name]
        far = [name for name in weights if not torch.allclose(one[name].double(), two[name].double(), 1e-6, 1e-9)]
        assert far == []
