"""Techniques in whole runs: the same on any number of ranks, with and without interruptions."""

from __future__ import annotations

import pytest
import torch
from launcher import PYTHON
from run_folders import events, last_tensors, losses, status

pytestmark = [pytest.mark.runs, pytest.mark.narrow]


def sets(*changes):
    return [word for change in changes for word in ("--set", change)]


DROP_PATH = sets(
    "model.drop_path_rate=0.3", "loss={name: bce, label_smoothing: 0, target_threshold: 0.2}", "mix={mixup: 0.5}"
)
CHECKPOINTING = [*DROP_PATH, *sets("runtime.grad_checkpointing=true", "evaluation.recalibrate={images: 16}")]


def same_tensors(one, other, **tolerance):
    a, b = last_tensors(one), last_tensors(other)
    assert a.keys() == b.keys()
    if not tolerance:
        return [name for name in a if not torch.equal(a[name], b[name])]
    return [name for name in a if not torch.allclose(a[name].double(), b[name].double(), **tolerance)]


@pytest.fixture(scope="module")
def checkpointed(module_train, tmp_path_factory):
    return module_train(tmp_path_factory.mktemp("checkpointed") / "run", *CHECKPOINTING)


def test_checkpointing_moves_no_loss_and_recalibration_only_the_last_statistics(checkpointed, train, tmp_path):
    plain = train(tmp_path / "run", *DROP_PATH)
    assert losses(checkpointed) == losses(plain)
    different = same_tensors(checkpointed, plain)
    assert different == [name for name in last_tensors(plain) if "running" in name]
    assert {name.partition(".")[0] for name in different} == {"model", "ema"}


def test_two_ranks_draw_what_one_draws(checkpointed, train, tmp_path):
    two = train(tmp_path / "run", *CHECKPOINTING, world=2)
    assert losses(two) == pytest.approx(losses(checkpointed), rel=1e-9)
    assert same_tensors(two, checkpointed, rtol=1e-6, atol=1e-9) == []


def test_resumed_it_is_bit_for_bit_the_same(checkpointed, train, tmp_path):
    middle = checkpointed / "checkpoints" / "step-00000004.safetensors"
    resumed = train(tmp_path / "run", *CHECKPOINTING, "--resume", str(middle))
    assert same_tensors(resumed, checkpointed) == []
    assert events(resumed, "validate") == events(checkpointed, "validate")[2:]


@pytest.fixture(scope="module")
def frozen(checkpointed, module_train, tmp_path_factory):
    """A run that starts from the weights of another run, and the arguments of the run."""
    weights = checkpointed / "checkpoints" / "last.safetensors"
    options = sets(f"model.weights={weights}", "model.reset_head=true", "model.frozen=[layer0, layer1]")
    return module_train(tmp_path_factory.mktemp("frozen") / "run", *options), options


def test_frozen_stages_keep_every_bit(frozen, checkpointed):
    before, after = last_tensors(checkpointed), last_tensors(frozen[0])
    stages = ("layer0.", "layer1.")
    for prefix in ("model.", "ema."):
        names = [name.removeprefix(prefix) for name in after if name.startswith(prefix)]
        kept = {name for name in names if torch.equal(after[prefix + name], before["ema." + name])}
        assert kept == {name for name in names if name.startswith(stages)}
    momentum = [name for name in after if name.startswith("optimizer.momentum.")]
    assert momentum
    assert not [name for name in momentum if name.startswith(stages, len("optimizer.momentum."))]


def test_with_frozen_stages_it_resumes_bit_for_bit(frozen, train, tmp_path):
    run, options = frozen
    middle = run / "checkpoints" / "step-00000004.safetensors"
    assert same_tensors(train(tmp_path / "run", *options, "--resume", str(middle)), run) == []


def test_an_early_stop_ends_the_run_for_good(train, run_command, train_arguments, tmp_path):
    """A learning rate that moves no weight never makes validation better."""
    patience = sets("early_stop={patience: 2st}", "evaluation.every=1st", "optimizer.lr=1e-12", "ema=null")
    run = train(tmp_path / "run", *patience)
    ended = status(run)
    assert (ended["state"], ended["step"]) == ("finished", len(losses(run)))
    assert ended["step"] < 8
    assert "early_stop.patience" in ended["reason"]
    result = run_command([PYTHON, *train_arguments(run, *patience)])
    assert "nothing to do" in result.stdout
    assert status(run)["state"] == "finished"
    assert "early_stop.patience" in status(run)["reason"]
