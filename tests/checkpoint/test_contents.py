"""The contents of a checkpoint: complete snapshot, strict restore, and a bit-exact resume."""

import copy
import json

import pytest
import torch
from torch import nn

from seresnext.checkpoint import contents, store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.errors import CheckpointError
from seresnext.recipe.schema import OptimizerSection
from seresnext.training.optimizer import build_optimizer, optimizer_state

FACTS = CheckpointMetadata(
    step=5,
    recipe={"optimizer": {"lr": 0.1}, "base": None},
    recipe_hash="abc",
    best={"top1": 71.2345678901234, "step": 4},
    history=[{"step": 2, "reason": "overflow"}],
    dataset={"classes": ["a", "ü"], "num_images": 7, "fingerprint": "f"},
    environment={"torch": "2"},
    progress={"unlogged_loss": 0.1 + 0.2, "evaluated": 4},
)


class Run:
    """A small training run with everything a checkpoint holds."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        self.model.to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.model)
        self.optimizer = build_optimizer(self.model, OptimizerSection(lr=0.1, weight_decay=1e-3))
        self.scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        self.step = 0

    def parts(self) -> dict[str, dict[str, torch.Tensor]]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_state(self.model, self.optimizer),
            "scaler": contents.scaler_state(self.scaler),
        }

    def train(self, steps: int) -> None:
        for _ in range(steps):
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(self.step))
            self.optimizer.zero_grad()
            self.scaler.scale(self.model(images).square().mean()).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            for mine, theirs in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
                mine.copy_(mine * 0.5 + theirs * 0.5)
            self.step += 1

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        parts = self.parts()
        contents.restore(tensors, parts)
        contents.load_scaler_state(self.scaler, parts["scaler"])


def snapshot(run: Run) -> dict[str, torch.Tensor]:
    buffers = contents.allocate_snapshot(run.parts())
    contents.take_snapshot(run.parts(), buffers)
    return buffers


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stop", [0, 1, 4, 5])
def test_resume_is_bit_exact(tmp_path, stop):
    straight, stopped, resumed = Run(), Run(), Run()
    straight.train(8)
    stopped.train(stop)
    facts = CheckpointMetadata(**{**vars(FACTS), "step": stop, "best": None, "history": [], "progress": {}})
    tensors, metadata = store.read(store.commit(tmp_path, stop, snapshot(stopped), facts.to_metadata()))
    resumed.train(2)  # Move the state away, so that no value is right by chance.
    weight = resumed.model[0].weight
    resumed.restore(tensors)
    assert resumed.model[0].weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    resumed.step = CheckpointMetadata.from_metadata(metadata, "file").step
    resumed.train(8 - stop)
    assert same(snapshot(straight), snapshot(resumed))


@pytest.mark.parametrize(
    "dropped", ["model.1.running_mean", "optimizer.momentum.0.weight", "ema.0.weight", "scaler.scale"]
)
def test_resume_without_one_tensor_differs(dropped):
    """The negative control: each kind of tensor is needed for the equality above."""
    straight, resumed = Run(), Run()
    straight.train(4)
    tensors = snapshot(straight)
    resumed.train(1)
    tensors[dropped] = snapshot(resumed)[dropped] + (dropped == "scaler.scale")
    straight.train(4)
    resumed.restore(tensors)
    resumed.step = 4
    resumed.train(4)
    assert not same(snapshot(straight), snapshot(resumed))


def test_a_scaler_that_is_off_has_no_state():
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert contents.scaler_state(off) == {}
    contents.load_scaler_state(off, {})


def test_a_snapshot_is_a_copy_into_the_same_buffers():
    run = Run()
    buffers = contents.allocate_snapshot(run.parts())
    contents.take_snapshot(run.parts(), buffers)
    before = buffers["model.0.weight"].clone()
    addresses = {name: tensor.data_ptr() for name, tensor in buffers.items()}
    run.train(1)
    assert torch.equal(buffers["model.0.weight"], before)
    contents.take_snapshot(run.parts(), buffers)
    assert {name: tensor.data_ptr() for name, tensor in buffers.items()} == addresses
    assert same(buffers, snapshot(run))
    assert not torch.equal(buffers["model.0.weight"], before)
    assert all(tensor.is_contiguous() for tensor in buffers.values())


def test_all_disagreements_in_one_message_and_nothing_changed():
    run = Run()
    before = snapshot(run)
    tensors = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    del tensors["model.0.bias"]
    tensors["ema.other\x1b[2J"] = torch.ones(1)
    tensors["model.4.weight"] = torch.ones(3, 288)
    tensors["scaler.scale"] = tensors["scaler.scale"].float()
    with pytest.raises(CheckpointError) as failure:
        contents.check_fits(tensors, run.parts(), "some/file")
    message = str(failure.value)
    assert "some/file does not fit this run, 4 disagreements" in message
    assert "model.0.bias: missing from the file" in message
    assert r"ema.other\x1b[2J: in the file, but this run has no such tensor" in message
    assert "model.4.weight: shape (3, 288) in the file, (2, 288) in this run" in message
    assert "scaler.scale: torch.float32 in the file, torch.float64 in this run" in message
    assert same(snapshot(run), before)


def test_metadata_survives_as_text():
    metadata = FACTS.to_metadata()
    assert metadata["format"] == "seresnext-2"
    assert metadata.keys() == {
        *("format", "step", "recipe", "recipe_hash", "best", "history", "dataset", "environment", "progress")
    }
    assert all(isinstance(text, str) for text in metadata.values())
    assert CheckpointMetadata.from_metadata({**metadata, "digest": "0"}, "file") == FACTS
    assert CheckpointMetadata.from_metadata({**metadata, "format": "seresnext-1"}, "file") == FACTS
    shuffled = CheckpointMetadata(**{**vars(FACTS), "recipe": dict(reversed(FACTS.recipe.items()))})
    assert shuffled.to_metadata() == metadata
    for best in (None, {"step": 4, "top1": 50.0, "balanced_accuracy": 1, "loss": 7.5, "by": "loss"}):
        assert CheckpointMetadata.from_metadata({**metadata, "best": json.dumps(best)}, "file").best == best


def bests(*changes):
    return [json.dumps({"step": 4, "top1": 50.0, **change}) for change in changes]


def datasets(*changes):
    return [json.dumps({**FACTS.dataset, **change}) for change in changes]


NUMBERS = ["NaN", "-Infinity", "1e999", "1" * 400]
# Texts that no run writes, and None for a missing one.
BAD = {
    "step": [None, "-3", "1e3", "9" * 19, "9" * 5000],
    "recipe": [None, "{", "[" * 100_000, "[]"],
    "recipe_hash": [None, "\x1b[2J"],
    "best": bests(
        {"step": "4"}, {"top1": 100.5}, {"top1": True}, {"top1": "50"}, {"top1": 10**400}, {"top1": float("nan")},
        {"macro_f1": -1}, {"by": ["top1"]}, {"by": "speed"}, {"loss": "low"}, {"step": 6},
    ),
    "history": [
        "{}", "[" * 900 + "]" * 900, "[3]", '[{"step": 6}]', '[{"step": 2, "more": 1}]',
        '[{"step": 2, "samples": [[]]}]', json.dumps([{"step": 2}] * 10_001),
    ],
    "dataset": datasets(
        {"classes": [["a"]]}, {"num_images": True}, {"val": 3}, {"val": {"num_images": -1, "fingerprint": ""}}
    ),
    "environment": ["[]", '{"a":' * 900 + "1" + "}" * 900],
    "progress": [f'{{"unlogged_loss": {number}}}' for number in NUMBERS],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_other_formats_and_bad_facts_are_refused(name):
    for text in BAD[name]:
        changed = {**FACTS.to_metadata(), name: text}
        if text is None:
            del changed[name]
        with pytest.raises(CheckpointError, match=f"some/file .*{name}.*Use another checkpoint of the run"):
            CheckpointMetadata.from_metadata(changed, "some/file")


@pytest.mark.parametrize(
    ("text", "message"),
    [("seresnext-1000", "newer version"), ("seresnext-3", "newer version"), ("seresnext-0", "not of a run"),
     ("pt", "not of a run"), (None, "not of a run")],
)  # fmt: skip
def test_other_formats_are_refused(text, message):
    with pytest.raises(CheckpointError, match=f"some/file .*{message}"):
        CheckpointMetadata.from_metadata({**FACTS.to_metadata(), "format": text}, "some/file")


def test_values_that_a_run_may_write_are_read():
    """The control: values at the limits, and the values of a run that has just begun."""
    history = [{"step": 5, "reason": "the loss is nan", "samples": ["a.jpg"] * 16}] * 1000
    best = {"step": 5, "top1": 100, "top5": 0.0, "weights": "ema"}
    progress = {"step": 5, "evaluated": 5, "best": best, "unlogged_loss": -1e30, "unlogged_steps": 0}
    dataset = {**FACTS.dataset, "val": {"num_images": 0, "fingerprint": ""}}
    rest = {"recipe_hash": "0" * 64, "history": history, "best": best, "progress": progress, "dataset": dataset}
    facts = CheckpointMetadata(**{**vars(FACTS), **rest})
    assert CheckpointMetadata.from_metadata(facts.to_metadata(), "file") == facts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.0.weight", float("nan")),
        ("ema.4.bias", float("inf")),
        ("optimizer.momentum.1.weight", float("-inf")),
        ("scaler.scale", float("nan")),
        ("model.1.running_var", -1e-3),
        ("ema.1.running_var", -1e-3),
    ],
)
def test_values_that_no_run_can_use_are_named(name, value):
    run = Run()
    tensors = {key: tensor.clone() for key, tensor in snapshot(run).items()}
    contents.check_fits(tensors, run.parts(), "some/file")  # The control. A running mean may be negative.
    tensors["model.1.running_mean"].fill_(-1)
    contents.check_fits(tensors, run.parts(), "some/file")
    tensors[name].reshape(-1)[0] = value
    with pytest.raises(CheckpointError, match=f"some/file.*\n  {name}: ") as failure:
        contents.check_fits(tensors, run.parts(), "some/file")
    assert len(str(failure.value).splitlines()) == 3
    with pytest.raises(CheckpointError, match="disagreement"):
        contents.check_fits({**tensors, "x": torch.ones(1)}, run.parts(), "some/file")


@pytest.mark.gpu
def test_snapshot_and_restore_on_a_gpu():
    source, target = Run().model.cuda(), Run().model.cuda()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    parts = {"model": source.state_dict()}
    taken = contents.allocate_snapshot(parts)
    contents.take_snapshot(parts, taken)
    assert all(tensor.is_pinned() and tensor.is_contiguous() for tensor in taken.values())
    contents.restore(taken, {"model": target.state_dict()})
    for ours, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert target[0].weight.is_contiguous(memory_format=torch.channels_last)
