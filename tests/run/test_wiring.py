"""Each key of a recipe reaches the object that uses the key. No value here is a default, and all values differ."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seresnext.data.augment.mixup import MixupCutmix
from seresnext.distributed import World
from seresnext.metrics.console import Console
from seresnext.models import SENet
from seresnext.models.blocks import SEResNeXtBottleneck
from seresnext.process.signals import StopRequest
from seresnext.randomness import torch_seed_at
from seresnext.recipe.schema import Recipe
from seresnext.run import assemble as run_module
from seresnext.run.assemble import Run
from seresnext.training import step as step_module
from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy
from seresnext.training.plan import Plan, Progress
from seresnext.training.schedule import Schedule

SETTINGS = [
    "model={name: seresnext26, num_classes: 5, in_channels: 1, drop_rate: 0.3, zero_init_last: true, "
    "drop_path_rate: 0.4}",
    "data={format: synthetic, synthetic_images: 40, image_size: 40, workers: 0, mean: [0.4], std: [0.3]}",
    "mix={mixup: 0.2, cutmix: 0.7, off_after: 14st}",
    "batch={global_size: 8, micro_size: 2}",
    "length=3ep",
    "optimizer={lr: 0.35, head_lr: 0.7, layer_decay: 0.5, momentum: 0.8, nesterov: true, weight_decay: 0.003, "
    "decay_norm_and_bias: false, "
    "clip_norm: 1.5, stop_after_skips: 7}",
    "schedule={name: cosine, warmup: 4st, final_lr: 0.01}",
    "loss={name: bce, label_smoothing: 0, target_threshold: 0.25, class_weights: {class_0001: 2}}",
    "ema={decay: 0.6, warmup: false}",
    "evaluation={every: 2ep, batch_size: 3, weights: model, best_by: macro_f1, recalibrate: {images: 17}}",
    "checkpoint={every: 3st, keep: 9, keep_every: 6st, on_failure: continue}",
    "logging={every: 11st, sinks: []}",
    "runtime={seed: 12, precision: fp64, compile: false, grad_checkpointing: true, channels_last: false, "
    "compress_gradients: none, deterministic: false}",
]


class Two(World):
    """A world of two ranks with equal values."""

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def broadcast(self, value: Any) -> Any:
        return value

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2)


@pytest.fixture(scope="module")
def build(narrow: pytest.MonkeyPatch, load_synthetic: Callable[[list[str]], Recipe]) -> Callable[..., Any]:
    """`build(*changes)`: a run of two ranks with the settings above and these changes.

    Returns `run`, and under the name of each class the arguments of the run's step, trainer, saver and counter.
    """

    def make(*changes: str) -> SimpleNamespace:
        seen = SimpleNamespace()

        def recorded(name: str) -> Callable[..., Any]:
            real = getattr(run_module, name)

            def construct(*words: Any, **named: Any) -> Any:
                setattr(seen, name, named or words)
                if name == "build_model":
                    seen.drawn_from = torch.initial_seed()
                return real(*words, **named)

            return construct

        with pytest.MonkeyPatch.context() as patch:
            for name in ("TrainingStep", "Trainer", "Saver", "BadImageCounter", "build_model"):
                patch.setattr(run_module, name, recorded(name))
            patch.setattr(step_module, "wrap_ddp", lambda model, compress, _: setattr(seen, "ddp", compress) or model)
            patch.setattr(step_module.TrainingStep, "warm_up", lambda self, *words: None)  # The warm-up takes a while.
            recipe = load_synthetic([*SETTINGS, *changes])
            # A recipe of synthetic images with this key is refused.
            data = recipe.data.model_copy(update={"max_bad_images": 6})
            run = Run(recipe.model_copy(update={"data": data}), None, Two(0, 2), Console(enabled=False))
            run.trainer(None, None, Progress(), StopRequest())
        seen.run = run
        return seen

    return make


@pytest.fixture(scope="module")
def built(build: Callable[..., Any]) -> Any:
    return build()


def blocks(model: SENet) -> list[SEResNeXtBottleneck]:
    return [module for module in model.modules() if isinstance(module, SEResNeXtBottleneck)]


# Keys that have the default for another reason.
AS_BY_DEFAULT = {
    "model.name", "model.weights", "model.reset_head", "model.frozen", "model.frozen_until",  # test_assemble.py
    "optimizer.name", "runtime.compile", "runtime.compress_gradients", "runtime.deterministic",
    "optimizer.betas", "optimizer.eps", "loss.name",
    "schedule.every", "schedule.factor", "early_stop", "ema.warmup",  # other values below
    "runtime.loader_timeout", "runtime.collective_timeout", "checkpoint.mirror",
}  # fmt: skip
SECTIONS = ("model", "mix", "batch", "optimizer", "schedule", "loss", "checkpoint", "logging", "runtime")


def test_no_value_is_a_default(load_synthetic):
    """With a default a key that is not connected would pass."""
    recipe = load_synthetic(SETTINGS)
    usual = Recipe.model_validate({"model": {"name": "seresnext26"}})
    same = {
        f"{section}.{key}"
        for section in SECTIONS
        for key, value in getattr(recipe, section)
        if value == getattr(getattr(usual, section), key)
    }
    assert same - AS_BY_DEFAULT == set()


def test_the_model(built):
    model = built.run.model
    assert (model.num_classes, model.in_channels, model.drop_rate) == (5, 1, 0.3)
    assert [block.drop_path_rate for block in blocks(model)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [block.bn3.weight.count_nonzero() for block in blocks(model)] == [0] * 4
    assert model.grad_checkpointing
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.layer1[0].conv2.weight.is_contiguous()
    assert built.drawn_from == torch_seed_at(12, "init")


def test_the_optimizer(built):
    groups = built.run.optimizer.param_groups
    for group in groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.35, 0.8, True)
    found = [(group["weight_decay"], group["rate_factor"], {p.ndim for p in group["params"]}) for group in groups]
    assert found == [
        *((0.003, 0.5**depth, {4}) if depth else (0.003, 2.0, {2}) for depth in range(6)),
        *((0.0, 0.5**depth if depth else 2.0, {1}) for depth in range(6)),
    ]


def test_the_step(built):
    run, step = built.run, built.TrainingStep
    loss = step["loss"]
    assert (type(loss), loss.label_smoothing, loss.target_threshold) == (BinaryCrossEntropy, 0.0, 0.25)
    assert loss.weights.tolist() == pytest.approx([5 / 6, 10 / 6, 5 / 6, 5 / 6, 5 / 6])
    assert step["mix"] == MixupCutmix(num_classes=5, seed=12, mixup=0.2, cutmix=0.7, last_step=14)
    assert step["ema"] is run.ema is not None
    assert (run.ema.decay_at(0), run.ema.decay_at(99)) == (0.6, 0.6)
    assert (step["thaw_at"], len(run.step.own_replicas), built.ddp) == (None, 2, False)


def test_the_trainer_and_its_saver(built):
    trainer = built.Trainer
    assert trainer["schedule"] == Schedule("cosine", 0.35, total=15, warmup=4, final=0.01)
    assert trainer["plan"] == Plan(
        total=15, steps_per_epoch=5, log_every=11, evaluate_every=10, save_every=3, keep_every=6, global_size=8,
        patience=None,
    )  # fmt: skip
    assert trainer["recipe"] is built.run.recipe
    assert trainer["logger"]._recipe.logging.sinks == ()
    assert list(trainer["logger"]._classes) == list(trainer["classes"]) == list(built.run.train.classes)
    assert trainer["models"] == {"model": built.run.model, "ema": built.run.ema.model}
    assert trainer["num_val_batches"] == 14  # 40 images by 3.
    assert built.BadImageCounter[0] == 6
    assert [built.Saver[name] for name in ("keep", "keep_every", "continue_on_failure")] == [9, 6, True]


OTHERS: dict[str, tuple[str, Callable[[Any], object], object]] = {
    "plain loss": ("loss={label_smoothing: 0.2}", lambda built: built.TrainingStep["loss"], CrossEntropy(0.2)),
    "adamw": (
        "optimizer={name: adamw, betas: [0.7, 0.8], eps: 1e-5, weight_decay: 0.1}",
        lambda built: [
            (type(built.run.optimizer), *(group[key] for key in ("betas", "eps", "weight_decay")))
            for group in built.run.optimizer.param_groups
        ],
        [(torch.optim.AdamW, (0.7, 0.8), 1e-5, 0.1)],
    ),
    "rate by steps": (
        "schedule={name: step, every: 2ep, factor: 0.3, warmup: 1st}", lambda built: built.Trainer["schedule"],
        Schedule("step", 0.35, total=15, warmup=1, every=10, factor=0.3),
    ),
    "rate along a line": (
        "schedule={name: linear, final_lr: 0.02}", lambda built: built.Trainer["schedule"],
        Schedule("linear", 0.35, total=15, final=0.02),
    ),
    "patience": (
        "evaluation={every: 1ep} early_stop={patience: 2ep}", lambda built: built.Trainer["plan"].patience, 10,
    ),
    "average with a warm-up": ("ema={decay: 0.6}", lambda built: built.run.ema and built.run.ema.decay_at(0), 0.1),
    "no average": (
        "ema=null", lambda built: (built.TrainingStep["ema"], list(built.Trainer["models"])), (None, ["model"]),
    ),
    "compressed": (
        "runtime={compress_gradients: bf16, precision: fp32, compile: false}", lambda built: built.ddp, True,
    ),
    "in NHWC": (
        "runtime.channels_last=true",
        lambda built: built.run.model.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last),
        True,
    ),
    "stop at a failed save": (
        "checkpoint={every: 1ep}", lambda built: built.Saver["continue_on_failure"], False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_values(build, case):
    changes, look, expected = OTHERS[case]
    assert look(build(*re.split(r" (?=\w+=)", changes))) == expected


def test_compiled_and_deterministic(build, monkeypatch):
    """Both are replaced here: one takes minutes, the other lasts to the end of the process."""
    asked = SimpleNamespace(compiled=0, deterministic=None)

    def compile_forward(model):
        asked.compiled += 1
        return model

    monkeypatch.setattr("seresnext.run.environment.resolve_compile", lambda wanted, device: (wanted is True, None))
    monkeypatch.setattr(step_module, "compile_forward", compile_forward)
    monkeypatch.setattr(run_module, "make_deterministic", lambda enabled: setattr(asked, "deterministic", enabled))
    build("runtime={compile: true, deterministic: true, precision: fp32}")
    assert (asked.compiled, asked.deterministic) == (1, True)
    build()
    assert (asked.compiled, asked.deterministic) == (1, False)


def test_images_are_made_as_the_recipe_says(build, monkeypatch):
    given: dict[str, Any] = {}

    def open_batches(source, keys, **named):
        given.update(named)
        return nullcontext([])

    monkeypatch.setattr("seresnext.data.pipeline.open_batches", open_batches)
    monkeypatch.setattr("seresnext.data.pipeline.prefetch", lambda batches, **named: given.update(named))
    run = build("runtime.loader_timeout=77", "data.workers=3").run
    expected = {
        "workers": 3, "timeout": 77, "pin_memory": False, "device": torch.device("cpu"), "dtype": torch.float64,
        "mean": (0.4,), "std": (0.3,), "channels_last": False, "fill": None, "compiled": False,
    }  # fmt: skip
    for batches in (run._validation_batches(), run.train_batches(0, 1)):
        with batches:
            assert given == expected
