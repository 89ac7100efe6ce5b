"""From sections of a recipe to the objects they describe."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seresnext.assemble.labels import labels_by_name
from seresnext.data.augment import EvaluationTransform, TrainTransform
from seresnext.data.batches import BatchSource, EvaluationImages, TrainImages
from seresnext.data.erase import Erasing, Filling
from seresnext.data.loader import open_batches
from seresnext.data.lookahead import look_ahead
from seresnext.data.mix import Mix
from seresnext.data.order import BatchKey, Order, shard_blocks
from seresnext.data.policies import ColorJitter, Policy, RandAugment, Retouch, TrivialAugment
from seresnext.data.prefetch import DeviceBatch, prefetch
from seresnext.data.progressive import Ramp
from seresnext.data.readers import Reader
from seresnext.data.readers.shards import ShardReader
from seresnext.data.substitute import Tally
from seresnext.data.synthetic import SyntheticImages, SyntheticReader
from seresnext.distributed import Exchange, World
from seresnext.errors import DataError, UsageError
from seresnext.models import SENet, create_model
from seresnext.models.locate import find_weights
from seresnext.models.pretrained import load_weights
from seresnext.recipe.schema import AugmentSection, LossSection, ModelSection, OptimizerSection, Recipe
from seresnext.runtime import PRECISIONS, Precision, resolve_compile, resolve_precision
from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy, Loss
from seresnext.training.optimizer import sgd
from seresnext.training.plan import Plan
from seresnext.training.schedule import Schedule
from seresnext.weights import read_weights
from seresnext.weights.names import shown_path


def settle_autos(values: dict[str, Any], settled: dict[str, Any], world: World) -> tuple[dict[str, Any], list[str]]:
    """A recipe's values with every `auto` replaced: by what `settled` has, else afresh for this device.

    `settled` are the values of the run so far, empty at a fresh start. Also returns what to tell the user. What has to
    be tried out is left to `trials.py`. Raises UsageError for what this device cannot do.
    """
    autos = [
        ("batch", "micro_size"),
        ("runtime", "precision"),
        ("runtime", "compile"),
        ("runtime", "channels_last"),
        ("evaluation", "weights"),
    ]
    sections = {name: dict(values[name]) for name in ("batch", "runtime", "evaluation")}
    for section, key in autos:
        if key == "compile" and sections[section][key] == "auto" and sections[section]["grad_checkpointing"]:
            sections[section][key] = False  # What compiled code keeps for the backward pass, it chooses by itself.
        if sections[section][key] == "auto" and settled:
            sections[section][key] = settled[section][key]
    runtime, evaluation = sections["runtime"], sections["evaluation"]
    runtime["precision"] = resolve_precision(runtime["precision"], world.device)
    runtime["compile"], notice = resolve_compile(runtime["compile"], world.device)
    runtime["channels_last"] = runtime["channels_last"] is not False
    runtime["measure"] = runtime["measure"] and not settled
    if sections["batch"]["micro_size"] == "auto" and world.device.type != "cuda":
        raise UsageError(
            "batch.micro_size: auto looks for what fits in the memory of a GPU, and there is none here; set it to a "
            "number, such as batch.micro_size=32"
        )
    if evaluation["weights"] == "auto":
        evaluation["weights"] = "ema" if values["ema"] else "model"
    return {**values, **sections}, [notice] if notice else []


def check_same_data(world: World, *readers: Reader) -> None:
    """Raise DataError unless all ranks see the same images. Copies of the data on several machines may differ.

    The message names the ranks that differ from the majority.
    """
    seen = world.gather((socket.gethostname(), tuple((len(reader), reader.fingerprint) for reader in readers)))
    usual = Counter(splits for _, splits in seen).most_common(1)[0][0]
    others = [f"rank {rank} on {host}" for rank, (host, splits) in enumerate(seen) if splits != usual]
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        rank, host = next((rank, host) for rank, (host, splits) in enumerate(seen) if splits == usual)
        raise DataError(
            f"{', '.join(others[:4])}{more} see other images or classes under the same path than rank {rank} on "
            f"{host}: names, sizes or the number of images differ; give all machines the same data"
        )


def build_order(recipe: Recipe, reader: Reader) -> Order:
    """The order of the training images. Raises DataError when there are too few for one step."""
    together = recipe.data.shuffle_shards
    assert together is None or isinstance(reader, ShardReader)
    return Order(
        len(reader),
        recipe.batch.global_size,
        recipe.batch.micro_size,
        recipe.runtime.seed,
        recipe.augment.repeats,
        shard_blocks(reader.shard_ids, together) if together and isinstance(reader, ShardReader) else None,
    )


def train_source(recipe: Recipe, reader: Reader) -> BatchSource:
    """What makes training batches of keys."""
    data, augment = recipe.data, recipe.augment
    if isinstance(reader, SyntheticReader):
        return SyntheticImages(reader, data.image_size, recipe.model.in_channels, recipe.runtime.seed)
    transform = TrainTransform(
        data.image_size, augment.crop_scale, augment.crop_ratio, augment.flip, augment.interpolation
    )
    return TrainImages(
        reader,
        transform,
        seed=recipe.runtime.seed,
        max_pixels=data.max_pixels,
        substitutes=data.on_error == "substitute",
        retouch=_build_retouch(augment),
        erasing=Erasing(erasing.probability, erasing.scale, erasing.ratio) if (erasing := augment.erasing) else None,
    )


def _build_retouch(augment: AugmentSection) -> Retouch | None:
    policies: list[Policy] = []
    if policy := augment.policy:
        if policy.name == "randaugment":
            assert policy.num_ops is not None
            assert policy.magnitude is not None
            policies.append(RandAugment(policy.num_ops, policy.magnitude, policy.num_magnitude_bins))
        else:
            policies.append(TrivialAugment(policy.num_magnitude_bins))
    if jitter := augment.color_jitter:
        policies.append(ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    return Retouch(tuple(policies), augment.interpolation) if policies else None


def build_filling(recipe: Recipe) -> Filling | None:
    """What the boxes of random erasing are filled with, or None when nothing is erased."""
    erasing = recipe.augment.erasing
    return Filling(erasing.value, recipe.runtime.seed) if erasing else None


def build_ramp(recipe: Recipe, plan: Plan) -> Ramp | None:
    """The size of training images as a function of the step, or None when it is always the same."""
    section = recipe.data.progressive
    if section is None:
        return None
    assert section.min_size is not None
    assert section.end_ramp is not None
    start, end = (duration.steps(plan.steps_per_epoch) for duration in (section.start_ramp, section.end_ramp))
    return Ramp(section.min_size, section.max_size or recipe.data.image_size, start, end)


def validation_source(recipe: Recipe, reader: Reader) -> BatchSource:
    """What makes validation batches of keys."""
    data = recipe.data
    if isinstance(reader, SyntheticReader):
        return SyntheticImages(reader, data.image_size, recipe.model.in_channels, recipe.runtime.seed)
    transform = EvaluationTransform(data.image_size, recipe.evaluation.crop_pct, recipe.evaluation.interpolation)
    return EvaluationImages(reader, transform, max_pixels=data.max_pixels)


@contextmanager
def device_batches(
    source: BatchSource,
    reader: Reader,
    keys: Iterable[BatchKey],
    recipe: Recipe,
    precision: Precision,
    world: World,
    *,
    training: bool = False,
    tally: Tally | None = None,
) -> Iterator[Iterator[DeviceBatch]]:
    """Batches of the keys, normalised on this rank's device, made by the recipe's number of workers from a reader.

    Only those of training are erased, and compiled where the recipe says so. `tally` counts images that were replaced.
    """
    data, runtime = recipe.data, recipe.runtime
    on_gpu = world.device.type == "cuda"
    with (
        look_ahead(reader, keys) as keys,
        open_batches(source, keys, workers=data.workers, timeout=runtime.loader_timeout, pin_memory=on_gpu) as batches,
    ):
        yield prefetch(
            tally.watch(batches) if tally else batches,
            device=world.device,
            dtype=precision.weights,
            mean=data.mean,
            std=data.std,
            channels_last=runtime.channels_last is not False,
            filling=build_filling(recipe) if training else None,
            compiled=training and on_gpu and runtime.compile is True,
        )


def stand_in_batch(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images of a micro-batch that mean nothing, of the largest size of training and as `prefetch` lays them out.

    Compiled code is for one layout of images: with another all of it would be made again at the first step. Also
    returns their labels.
    """
    progressive, batch = recipe.data.progressive, recipe.batch
    size = (progressive and progressive.max_size) or recipe.data.image_size
    images = torch.empty(
        (batch.micro_size, recipe.model.in_channels, size, size),
        dtype=PRECISIONS[recipe.runtime.precision].weights,
        device=device,
        memory_format=torch.channels_last if recipe.runtime.channels_last is not False else torch.contiguous_format,
    )
    return images.zero_(), torch.zeros(batch.micro_size, dtype=torch.int64, device=device)


def build_exchange(recipe: Recipe) -> Exchange:
    """How the gradients of a recipe travel between ranks."""
    runtime = recipe.runtime
    return Exchange(runtime.bucket_mb, runtime.compress_gradients == "bf16", runtime.static_graph)


def build_mix(recipe: Recipe, plan: Plan) -> Mix | None:
    """The mixing of a recipe, or None when it has none."""
    mix = recipe.mix
    if not mix.mixup and not mix.cutmix:
        return None
    last = mix.off_after.steps(plan.steps_per_epoch) if mix.off_after else None
    return Mix(recipe.model.num_classes, recipe.runtime.seed, mix.mixup, mix.cutmix, last)


def build_model(section: ModelSection) -> SENet:
    """The model with weights drawn from torch's default generator."""
    return create_model(
        section.name,
        num_classes=section.num_classes,
        in_channels=section.in_channels,
        drop_rate=section.drop_rate,
        zero_init_last=section.zero_init_last,
        drop_path_rate=section.drop_path_rate,
    )


def build_optimizer(model: nn.Module, section: OptimizerSection) -> torch.optim.SGD:
    """The optimizer of all parameters that are trained."""
    return sgd(
        model,
        lr=section.lr,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
        decay_norm_and_bias=section.decay_norm_and_bias,
    )


def load_first_weights(model: SENet, section: ModelSection, reader: Reader) -> list[str]:
    """Load the file of weights that the recipe names, if any; returns what the user should be told.

    `reader` reads the training images. Raises CheckpointError when the file is refused or does not fit.
    """
    if section.weights is None:
        return []
    path = find_weights(section.weights)
    tensors, metadata = read_weights(path)
    notes = load_weights(model, tensors, shown_path(path), section.reset_head)
    if not metadata and not section.reset_head and _has_other_labels(reader):
        notes.append(
            f"warning: the classifier of {shown_path(path)} is kept, but the class folders of the data are labelled in "
            "text order; rename the folders to numbers of one width (007), or set model.reset_head=true"
        )
    return notes


def _has_other_labels(reader: Reader) -> bool:
    """Return whether labels of a file without class names stand for other classes than the labels of the data."""
    if isinstance(reader, SyntheticReader):
        return False
    try:
        return labels_by_name(reader.classes, "the data")[0] != list(range(len(reader.classes)))
    except DataError:
        return True


def build_plan(recipe: Recipe, steps_per_epoch: int) -> Plan:
    """All lengths of a recipe in optimizer steps."""
    return Plan(
        total=recipe.length.steps(steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        log_every=recipe.logging.every.steps(steps_per_epoch),
        evaluate_every=recipe.evaluation.every.steps(steps_per_epoch),
        save_every=recipe.checkpoint.every.steps(steps_per_epoch),
        keep_every=recipe.checkpoint.keep_every.steps(steps_per_epoch) if recipe.checkpoint.keep_every else None,
        global_size=recipe.batch.global_size,
        patience=recipe.early_stop.patience.steps(steps_per_epoch) if recipe.early_stop else None,
        stop_after_skips=recipe.optimizer.stop_after_skips,
    )


def build_schedule(recipe: Recipe, plan: Plan) -> Schedule:
    """The learning rate of a recipe as a function of the step."""
    section = recipe.schedule
    lengths = {"total": plan.total, "warmup": section.warmup.steps(plan.steps_per_epoch)}
    if section.name == "step":
        assert section.every is not None
        assert section.factor is not None
        falls = {"every": section.every.steps(plan.steps_per_epoch), "factor": section.factor}
        return Schedule("step", recipe.optimizer.lr, **lengths, **falls)
    return Schedule(section.name, recipe.optimizer.lr, **lengths, final=section.final_lr)


def build_loss(section: LossSection) -> Loss:
    """What training minimises."""
    if section.name == "bce":
        return BinaryCrossEntropy(section.label_smoothing, section.target_threshold)
    return CrossEntropy(section.label_smoothing)
