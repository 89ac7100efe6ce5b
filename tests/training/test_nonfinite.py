"""Skipped steps change no bit of weights, optimizer state, BatchNorm statistics and EMA."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import BatchNormStatistics, World
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS
from seresnext.training import step as step_module
from seresnext.training.ema import Ema
from seresnext.training.loss import CrossEntropy
from seresnext.training.nonfinite import NonFiniteStep, describe_skip, nonfinite_validation, record_validation
from seresnext.training.optimizer import build_optimizer, optimizer_state
from seresnext.training.plan import Progress
from seresnext.training.result import StepResult
from seresnext.training.step import TrainingStep

LR = 0.1


class Bench:
    """A small network in training, with methods to spoil a step."""

    def __init__(self, precision="fp64", layout=torch.contiguous_format, replicas=2, device="cpu", **options):
        runtime = {"seed": 3, "precision": precision, "compile": options.pop("compiled", False)}
        recipe = Recipe.model_validate(
            {
                "model": {"name": "seresnext26"},
                "batch": {"global_size": 4 * replicas, "micro_size": 4},
                "optimizer": {"lr": 1.0, "weight_decay": 1e-2, **options},
                "runtime": runtime,
            }
        )
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 5)
        self.dtype = PRECISIONS[precision].weights
        self.layout = layout
        self.replicas = replicas
        self.device = torch.device(device)
        self.model = nn.Sequential(*layers).to(self.device, self.dtype).to(memory_format=layout)
        with torch.no_grad():
            self.model[5].bias[0] = -0.0
        self.ema = Ema(self.model, 0.9, warmup=True)
        self.optimizer, world = build_optimizer(self.model, recipe.optimizer), World(device=self.device)
        self.step = TrainingStep(self.model, self.optimizer, CrossEntropy(0.1), recipe, world, ema=self.ema)

    def batch(self, step, replica):
        generator = torch.Generator().manual_seed(100 * step + replica)
        images = torch.randn(4, 3, 6, 6, generator=generator).to(self.device, self.dtype)
        labels = torch.randint(5, (4,), generator=generator).to(self.device)
        return DeviceBatch(images.to(memory_format=self.layout), labels, step, replica, 0.0)

    def take(self, step, spoil=None):
        """Take a step and return the result. `spoil` is `loss` or `gradient`, of the last replica."""
        return self.queue(step, spoil).result()

    def queue(self, step, spoil=None):
        """Queue a step and return the pending result."""
        batches = [self.batch(step, replica) for replica in range(self.replicas)]
        hook = None
        if spoil == "loss":
            batches[-1].images[1] = torch.nan
        elif spoil == "gradient":
            hook = self.model[0].weight.register_hook(lambda gradient: gradient / 0)
        report = self.step(iter(batches), step=step, lr=LR, stop=False)
        if hook:
            hook.remove()
        return report

    def bytes(self):
        """Return the bytes of all tensors that training changes."""
        state = optimizer_state(self.model, self.optimizer)
        tensors = {**self.model.state_dict(prefix="model."), **self.ema.model.state_dict(prefix="ema."), **state}
        return {name: tensor.detach().cpu().numpy().tobytes() for name, tensor in tensors.items()}


VARIANTS = {
    "fp64": {},
    "one replica": {"replicas": 1},
    "three replicas": {"replicas": 3},
    "no momentum, fp32": {"momentum": 0.0, "precision": "fp32"},
    "nesterov": {"nesterov": True},
    "adamw": {"name": "adamw"},
    "adamw, fp32": {"name": "adamw", "precision": "fp32"},
    "clipped": {"clip_norm": 0.05},
    "fp32, channels_last": {"precision": "fp32", "layout": torch.channels_last},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "compiled": {"precision": "fp32", "compiled": True},
}
MARKED = [pytest.param(name, marks=[pytest.mark.full] * (name == "compiled")) for name in VARIANTS]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("spoil", ["loss", "gradient"])
@pytest.mark.parametrize("variant", MARKED)
def test_a_spoilt_step_changes_nothing(variant, spoil, device):
    """The later steps equal the steps of a run without the spoilt step, which may be the very first."""
    bench, other = (Bench(**VARIANTS[variant], device=device) for _ in range(2))
    first = 0 if variant == "fp64" else 2
    for step in range(first):
        bench.take(step)
        other.take(step)
    before = bench.bytes()
    report = bench.take(first, spoil)
    assert bench.bytes() == before
    assert report.skipped
    assert math.isfinite(report.loss) == (spoil == "gradient")
    assert not math.isfinite(report.grad_norm)
    if variant == "fp16":  # The scaler lowers the scale after both kinds.
        assert bench.step.scaler.get_scale() == other.step.scaler.get_scale() / 2
        other.step.scaler.load_state_dict(bench.step.scaler.state_dict())
    for step in (first + 1, first + 2):
        assert bench.take(step) == other.take(step)
    assert bench.bytes() == other.bytes() != before


class Operations(TorchDispatchMode):
    """Records the names of the operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_skip_does_not_wait_for_the_device(precision):
    """The host reads no number before it reads the result."""
    bench = Bench(precision=precision, clip_norm=1.0)
    with Operations() as operations:
        for step, spoil in enumerate((None, "loss", "gradient")):
            bench.queue(step, spoil)
        assert "aten::_fused_sgd_" in operations.names
        assert "aten::_local_scalar_dense" not in operations.names
        torch.ones(1).item()
        assert "aten::_local_scalar_dense" in operations.names  # The control: this is how a read shows.


EMA_UPDATE = Ema.update
GUARDS = {
    "statistics": (BatchNormStatistics, "undo_if", lambda self, skip: None),
    "ema": (Ema, "update", lambda self, step, skip: EMA_UPDATE(self, step)),
    "optimizer": (step_module, "skip_if", lambda optimizer, skip: None),
}


def without_guard(patch, *kinds):
    for kind in kinds:
        patch.setattr(*GUARDS[kind])


@pytest.mark.parametrize("part", ["model.0.weight", "momentum.0.weight", "model.1.running_var", "ema.5.weight"])
def test_each_part_needs_a_guard(monkeypatch, part):
    """The controls: without one of the three guards, the guarded state is spoilt, and only this state."""
    kind = part.partition(".")[0] if "running" not in part else "statistics"
    without_guard(monkeypatch, kind if kind in GUARDS else "optimizer")
    bench = Bench()
    bench.take(0)
    before = bench.bytes()
    bench.take(1, "loss")
    after = bench.bytes()
    assert after[part] != before[part]
    assert (after["model.1.num_batches_tracked"] != before["model.1.num_batches_tracked"]) == (kind == "statistics")


def test_finite_steps_are_not_skipped():
    """Bit for bit the run of an optimizer and an EMA without a skip flag."""
    bench, plain = Bench(), Bench()
    before = bench.bytes()
    with pytest.MonkeyPatch.context() as patch:
        without_guard(patch, *GUARDS)
        for step in range(3):
            plain.take(step)
    reports = [bench.take(step) for step in range(3)]
    assert not any(report.skipped for report in reports)
    assert {report.loss_scale for report in reports} == {1.0}
    assert bench.bytes() == plain.bytes() != before


def test_the_scaler_lowers_the_scale_and_overflows_above_one():
    bench = Bench(precision="fp16")
    bench.take(0)
    state = bench.step.scaler.state_dict()
    bench.step.scaler.load_state_dict({**state, "scale": 2.0**120})
    overflow = bench.take(1)
    assert (overflow.skipped, overflow.overflowed, overflow.loss_scale) == (True, True, 2.0**120)
    assert bench.step.scaler.get_scale() == 2.0**119
    bench.step.scaler.load_state_dict({**state, "scale": 1.0})
    bad = bench.take(2, "gradient")
    assert (bad.skipped, bad.overflowed, bad.loss_scale) == (True, False, 1.0)
    assert bench.take(3, "loss").overflowed is False


# ------------------------------------------------------------------------------------------------ messages


def names(step, replica):
    return [f"{step}/{replica}/{n}.jpg" for n in range(2)]


def test_a_loss_names_micro_batches_and_a_gradient_does_not():
    report = StepResult(4, (1.0, math.nan, math.inf), math.nan, 0.0, False, skipped=True)
    skip = describe_skip(report, names)
    assert (skip.step, skip.reason) == (5, "the loss is nan in micro-batches 2, 3 of 3")
    assert skip.samples == ["4/1/0.jpg", "4/1/1.jpg", "4/2/0.jpg", "4/2/1.jpg"]
    skip = describe_skip(StepResult(4, (1.0, 1.0), math.inf, 0.0, False, skipped=True), names)
    assert (skip.reason, len(skip.samples)) == ("the gradient's norm is inf", 4)


def test_the_history_is_short_plain_data():
    skip = NonFiniteStep(5, "why", [f"{n}.jpg" for n in range(20)])
    old = [{"step": 3}]
    assert skip.append_to(old) == [{"step": 3}, {"step": 5, "reason": "why", "samples": skip.samples[:16]}]
    assert old == [{"step": 3}]
    assert json.loads(json.dumps(skip.append_to(old), allow_nan=False)) == skip.append_to(old)
    many = [{"step": step} for step in range(2000)]
    assert [entry["step"] for entry in skip.append_to(many)] == [*range(1001, 2000), 5]
    assert skip.warning.splitlines()[-2:] == ["  15.jpg", "  ... and 4 more"]
    assert "more" not in NonFiniteStep(5, "why", ["0.jpg"]).warning


# ------------------------------------------------------------------------------------------------ validations


def warning_after(losses, best=1, history=()):
    """Return the warning about a run with these validation losses after steps 1, 2 and so on."""
    progress = Progress(history=list(history), best={"step": best, "top1": 1.0})
    for step, loss in enumerate(losses, 1):
        progress.history = record_validation(progress.history, step, loss)
        progress.evaluated = progress.step = step
    return nonfinite_validation(progress)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_warning_about_a_last_validation_that_is_not_finite(bad):
    assert warning_after([1.0, 2.0]) is None
    assert warning_after([]) is None
    assert warning_after([1.0, bad, 3.0]) is None
    for losses, best, steps in (([1.0, bad, bad], 1, "3"), ([1.0, bad, 3.0], 2, "2"), ([1.0, bad, bad], 2, "2 and 3")):
        assert warning_after(losses, best) == f"the validation loss is not finite after step {steps}"
    assert warning_after([1.0, bad], best=2) == "the validation loss is not finite after step 2"


def test_skipped_steps_give_no_warning():
    """An entry of a skipped step is no entry of a validation after this step."""
    skip = NonFiniteStep(2, "the loss is nan in micro-batch 1 of 2", ["a.jpg"])
    assert warning_after([1.0, 2.0], best=2, history=skip.append_to([])) is None


def test_the_history_keeps_its_size_and_is_replaced():
    history = [{"step": n, "reason": "the loss is nan", "samples": []} for n in range(1000)]
    assert record_validation(history, 5, 1.0) is history
    longer = record_validation(history, 5, math.nan)
    assert (len(history), len(longer), longer[0]["step"], longer[-1]["step"]) == (1000, 1000, 1, 5)
