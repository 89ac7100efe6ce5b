"""A whole run with every augmentation on and images that grow: on more ranks, and resumed with other workers."""

from __future__ import annotations

import pytest
import torch
from run_folders import events, last_tensors, losses

pytestmark = [pytest.mark.runs, pytest.mark.narrow]

SETTINGS = [
    "augment.policy={name: randaugment, num_ops: 2, magnitude: 9}",
    "augment.color_jitter={brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}",
    "augment.erasing={probability: 0.5, value: random}",
    "augment.repeats=2",
    "mix={mixup: 0.2, cutmix: 1.0, off_after: 6st}",
    "data.image_size=64",
    "data.progressive={min_size: 32, start_ramp: 2st, end_ramp: 6st}",
]
CHANGES = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module")
def whole(module_train, tmp_path_factory):
    return module_train(tmp_path_factory.mktemp("augmented") / "run", *CHANGES)


def test_resumed_from_the_middle_it_is_bit_for_bit_the_same_with_any_workers(whole, train, tmp_path):
    middle = whole / "checkpoints" / "step-00000004.safetensors"
    run = train(tmp_path / "run", *CHANGES, "--set", "data.workers=0", "--resume", str(middle))
    one, other = last_tensors(whole), last_tensors(run)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert events(run, "train") == events(whole, "train")[4:]


def test_two_ranks_equal_one(whole, train, tmp_path):
    assert losses(train(tmp_path / "run", *CHANGES, world=2)) == pytest.approx(losses(whole), rel=1e-9)
