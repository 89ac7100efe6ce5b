"""All augmentations and techniques in whole runs: the same on any number of ranks and workers, and if interrupted."""

import pytest
import torch
from launcher import PYTHON
from run_folders import differences, events, last_tensors, losses, status

pytestmark = pytest.mark.runs


def sets(*changes):
    return [word for change in changes for word in ("--set", change)]


PLAIN = sets(
    "model.drop_path_rate=0.3",
    "loss={name: bce, label_smoothing: 0, target_threshold: 0.2}",
    "mix={mixup: 0.5, cutmix: 1.0, off_after: 6st}",
    "augment.policy={name: randaugment, num_ops: 2, magnitude: 9}",
    "augment.color_jitter={brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}",
    "augment.erasing={probability: 0.5, value: random}",
    "augment.repeats=2",
    "data.image_size=64",
    "data.progressive={min_size: 32, start_ramp: 2st, end_ramp: 6st}",
)
CHECKPOINTING = [*PLAIN, *sets("runtime.grad_checkpointing=true", "evaluation.recalibrate={images: 16}")]


@pytest.fixture(scope="module")
def checkpointed(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("checkpointed") / "run", *CHECKPOINTING)


@pytest.mark.full
def test_checkpointing_moves_no_loss_and_recalibration_only_the_last_statistics(checkpointed, train, tmp_path):
    plain = train(tmp_path / "run", *PLAIN)
    assert losses(checkpointed) == losses(plain)
    different = differences(checkpointed, plain)
    assert different == [name for name in last_tensors(plain) if "running" in name]
    assert {name.partition(".")[0] for name in different} == {"model", "ema"}


def test_two_ranks_draw_what_one_draws(checkpointed, train, tmp_path):
    two = train(tmp_path / "run", *CHECKPOINTING, world=2)
    assert losses(two) == pytest.approx(losses(checkpointed), rel=1e-9)
    ours, theirs = last_tensors(two), last_tensors(checkpointed)
    far = [name for name in ours if not torch.allclose(ours[name].double(), theirs[name].double(), 1e-6, 1e-9)]
    assert far == []


def test_resumed_with_other_workers_it_is_bit_for_bit_the_same(checkpointed, train, tmp_path):
    middle = checkpointed / "checkpoints" / "step-00000004.safetensors"
    resumed = train(tmp_path / "run", *CHECKPOINTING, "--set", "data.workers=0", "--resume", str(middle))
    assert differences(resumed, checkpointed) == []
    assert events(resumed, "train") == events(checkpointed, "train")[4:]
    assert events(resumed, "validate") == events(checkpointed, "validate")[2:]


def test_an_early_stop_ends_the_run_for_good(train, run_command, train_arguments, tmp_path):
    """A learning rate that moves no weight never makes validation better."""
    patience = sets("early_stop={patience: 2st}", "evaluation.every=1st", "optimizer.lr=1e-12", "ema=null")
    run = train(tmp_path / "run", *patience)
    ended = status(run)
    assert (ended["state"], ended["step"]) == ("finished", len(losses(run)))
    assert ended["step"] < 8
    assert "early_stop.patience" in ended["reason"]
    before = (run / "metrics.jsonl").read_bytes()
    assert "nothing to do" in run_command([PYTHON, *train_arguments(run, *patience)]).stdout
    assert (run / "metrics.jsonl").read_bytes() == before
    assert status(run)["state"] == "finished"
    assert "early_stop.patience" in status(run)["reason"]
