"""The objects of one training run."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seresnext.checkpoint.contents import (
    CheckpointMetadata,
    StateTensors,
    check_fits,
    load_scaler_state,
    restore,
    scaler_state,
)
from seresnext.data.augment.mixup import build_mixup_cutmix
from seresnext.data.augment.progressive import build_image_size_schedule
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.pipeline import (
    build_order,
    check_same_data,
    device_batches,
    stand_in_batch,
    train_source,
    validation_source,
)
from seresnext.data.readers.class_labels import has_other_labels
from seresnext.data.substitute import BadImageCounter
from seresnext.distributed import World
from seresnext.distributed.ddp import build_ddp_options
from seresnext.errors import CheckpointError, UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.logger import RunLogger
from seresnext.models.pretrained import load_first_weights
from seresnext.models.registry import build_model
from seresnext.process.stop_request import StopRequest
from seresnext.randomness import torch_seed_at
from seresnext.recipe.check import check_world
from seresnext.recipe.check_lengths import check_lengths
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.show import recipe_hash
from seresnext.run import opening
from seresnext.run.folder import RunFolder, describe_environment
from seresnext.run.resume import LoadedCheckpoint
from seresnext.run.trials import choose_by_trial
from seresnext.runtime import PRECISIONS, make_deterministic, resolve_compile, resolve_precision, tune_malloc
from seresnext.training.ema import Ema
from seresnext.training.loss import build_loss
from seresnext.training.optimizer import build_optimizer, optimizer_state, share_step_count
from seresnext.training.plan import Progress, build_plan
from seresnext.training.saving import SavePolicy, Saver
from seresnext.training.schedule import build_schedule
from seresnext.training.step import StepSettings, TrainingStep
from seresnext.training.trainer import TrainData, Trainer, Validation


class Run:
    """Everything a recipe describes, built on every rank alike.

    `values` is the recipe with every `auto` settled, `dataset` what a checkpoint says of the data. `settled` are the
    values of the run so far, empty at a fresh start: one that goes on does not need the weights that it began with.
    `meant` are the keys that somebody wrote for a run of this length (recipe/check_lengths.py).
    """

    def __init__(
        self,
        values: dict[str, Any],
        settled: dict[str, Any],
        world: World,
        console: Console,
        meant: Collection[str] = (),
    ) -> None:
        self.values, notices = world.together(lambda: resolve_auto(values, settled, world))
        self._world = world
        self._console = console
        # Before trials, which take a while.
        recipe = recipe_from_values(values, "the recipe")
        self.train, self.val = opening.open_splits(recipe, world, console.line, settled, meant)
        world.together(lambda: check_same_data(world, self.train, self.val))
        make_deterministic(self.values["runtime"]["deterministic"])
        tune_malloc(world.device)
        self.values = world.together(lambda: choose_by_trial(self.values, values, world, console.line))
        recipe = self.recipe = recipe_from_values(self.values, "the resolved recipe")
        world.together(lambda: check_world(recipe, world.size))
        self.order = world.together(lambda: build_order(recipe, self.train))
        notices += world.together(lambda: check_lengths(recipe, self.order.steps_per_epoch, meant))
        self.plan = build_plan(recipe, self.order.steps_per_epoch)
        self.precision = PRECISIONS[recipe.runtime.precision]
        torch.manual_seed(torch_seed_at(recipe.runtime.seed, "init"))
        self.model = build_model(recipe.model)
        self.model.grad_checkpointing = recipe.runtime.grad_checkpointing
        # Before weights come: those in float64 would be rounded on their way through a model in float32.
        self.precision.place(self.model, world.device, recipe.runtime.channels_last is True)
        if not settled:
            notices += world.together(
                lambda: load_first_weights(self.model, recipe.model, lambda: has_other_labels(self.train))
            )
        self.model.freeze(recipe.model.frozen)
        for notice in notices:
            console.line(notice)
        self._tally = BadImageCounter(recipe.data.max_bad_images, world, console.line)
        self.ema = Ema(self.model, recipe.ema.decay, recipe.ema.warmup) if recipe.ema else None
        self.optimizer = build_optimizer(self.model, recipe.optimizer)

    @property
    def dataset(self) -> dict[str, Any]:
        """What a checkpoint says of the data it was trained on."""
        return {
            "classes": list(self.train.classes),
            "num_images": len(self.train),
            "fingerprint": self.train.fingerprint,
            "val": {"num_images": len(self.val), "fingerprint": self.val.fingerprint},
        }

    @property
    def largest_class(self) -> float:
        """The share of the largest class of the validation split, in percent."""
        return 100 * float(np.bincount(self.val.labels).max()) / len(self.val)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What this run's numbers may depend on besides its recipe: asked for once, since git is slow to answer."""
        return describe_environment(self._world)

    def introduction(self) -> str:
        """What will run, for the person at the terminal."""
        recipe, plan, world = self.recipe, self.plan, self._world
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        runtime = recipe.runtime
        return (
            f"{recipe.model.name}: {parameters:,} parameters, {recipe.model.num_classes} classes\n"
            f"{len(self.train):,} training and {len(self.val):,} validation images\n"
            f"{plan.total:,} steps ({recipe.length}, {plan.steps_per_epoch:,} an epoch) of {plan.global_size} images: "
            f"{self.order.replicas} micro-batches of {recipe.batch.micro_size} on {world.size} "
            f"{'process' if world.size == 1 else 'processes'}\n"
            f"{world.device.type}, {runtime.precision}, {'compiled' if runtime.compile is True else 'eager'}"
        )

    def is_complete(self, progress: Progress) -> bool:
        """Whether nothing is left to do."""
        return self.plan.is_complete(progress)

    def early_end(self, progress: Progress) -> str | None:
        """Why a run that is complete ended before its length, or None."""
        early_stop = self.recipe.early_stop
        if early_stop is None or progress.step == self.plan.total or not self.plan.has_stalled(progress):
            return None
        return f"validation has not improved for {early_stop.patience} (early_stop.patience)"

    def trainer(
        self, folder: RunFolder | None, saved: LoadedCheckpoint | None, progress: Progress, stop: StopRequest
    ) -> Trainer:
        """The trainer at `progress`, with the tensors of `saved` if there are any. Without a folder nothing is written.

        Raises CheckpointError when the checkpoint does not fit.
        """
        recipe, world = self.recipe, self._world
        step = self.build_step()
        if saved:
            world.together(lambda: self._restore(saved, step))
        logger = RunLogger(folder.path if folder else None, self._console, world, recipe.model.num_classes)
        world.together(lambda: logger.open(progress.step, progress.evaluated, progress.logged))
        models = {"model": self.model, **({"ema": self.ema.model} if self.ema else {})}
        gc.enable()  # The start is over, which train.py disabled it for.
        return Trainer(
            world=world,
            plan=self.plan,
            progress=progress,
            step=step,
            schedule=build_schedule(recipe, self.plan),
            train=TrainData(
                lambda start: self.train_batches(step.own_replicas, start, self.plan.total),
                self._names,
                self._tally,
                (lambda: self._calibration_batches(step.own_replicas)) if recipe.evaluation.recalibrate else None,
            ),
            validation=Validation(
                self._validation_batches,
                num_batches=math.ceil(len(self.val) / self._evaluation_size),
                models=models,
                best_by=recipe.evaluation.weights,
                precision=self.precision,
            ),
            saver=self.saver(folder.checkpoints if folder else None, step),
            logger=logger,
            stop=stop,
        )

    def saver(self, folder: Path | None, step: TrainingStep) -> Saver:
        """What saves this run into the folder `checkpoints`; without one nothing is saved."""
        settings = self.recipe.checkpoint
        return Saver(
            self._world,
            folder,
            policy=SavePolicy(settings.keep, self.plan.keep_every, settings.on_failure == "continue"),
            tensors=lambda: self._parts(step),
            metadata=self._facts,
            warn=self._console.line,
        )

    def check_fits(self, saved: LoadedCheckpoint) -> None:
        """Raise CheckpointError unless this run can resume from a checkpoint. Change nothing."""
        check_fits(saved.tensors, self._parts(self._step), str(saved.path))
        # With a permitted change of these sections, another number of steps is right.
        same = all(
            saved.facts.recipe.get(section) == self.values[section] for section in ("length", "batch", "augment")
        )
        if saved.facts.step > self.plan.total and same and saved.facts.dataset["num_images"] == len(self.train):
            raise CheckpointError(
                f"{saved.path} is of step {saved.facts.step}, and the run has {self.plan.total} steps; use another "
                "checkpoint of the run"
            )

    def build_step(self) -> TrainingStep:
        """The step of this run, warmed up."""
        # The largest size of training, so that too large a batch for the device's memory shows at once.
        self._step.warm_up(*stand_in_batch(self.recipe, self._world.device))
        return self._step

    @cached_property
    def _step(self) -> TrainingStep:
        recipe = self.recipe
        return TrainingStep(
            self.model,
            self.optimizer,
            loss=build_loss(recipe.loss),
            settings=StepSettings(
                replicas=self.order.replicas,
                seed=recipe.runtime.seed,
                precision=self.precision,
                compiled=recipe.runtime.compile is True,
                clip_norm=recipe.optimizer.clip_norm,
                ddp=build_ddp_options(recipe),
            ),
            world=self._world,
            mix=build_mixup_cutmix(recipe, self.plan.steps_per_epoch),
            ema=self.ema,
        )

    def _parts(self, step: TrainingStep) -> StateTensors:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else {},
            "optimizer": optimizer_state(self.model, self.optimizer),
            "scaler": scaler_state(step.scaler),
        }

    def _restore(self, saved: LoadedCheckpoint, step: TrainingStep) -> None:
        live = self._parts(step)
        restore(saved.tensors, live, str(saved.path))
        share_step_count(self.optimizer, live["optimizer"])
        load_scaler_state(step.scaler, live["scaler"])

    def train_batches(self, replicas: range, start: int, end: int) -> AbstractContextManager[Iterator[DeviceBatch]]:
        """The micro-batches of some logical replicas, from step `start` on and before step `end`."""
        source = train_source(self.recipe, self.train)
        ramp = build_image_size_schedule(self.recipe, self.plan.steps_per_epoch)
        keys = train_keys(self.order, replicas, start, end, ramp)
        return device_batches(
            source, self.train, keys, self.recipe, self.precision, self._world, training=True, tally=self._tally
        )

    def _calibration_batches(self, replicas: range) -> AbstractContextManager[Iterator[DeviceBatch]]:
        """The training images that would come next, not mixed."""
        assert self.recipe.evaluation.recalibrate
        steps = math.ceil(self.recipe.evaluation.recalibrate.images / self.plan.global_size)
        return self.train_batches(replicas, self.plan.total, self.plan.total + steps)

    def _validation_batches(self) -> AbstractContextManager[Iterator[DeviceBatch]]:
        source = validation_source(self.recipe, self.val)
        keys = evaluation_keys(len(self.val), self._evaluation_size, self._world.rank, self._world.size)
        return device_batches(source, self.val, keys, self.recipe, self.precision, self._world)

    @property
    def _evaluation_size(self) -> int:
        return self.recipe.evaluation.batch_size or self.recipe.batch.micro_size

    def _facts(self, step: int, progress: dict[str, Any]) -> CheckpointMetadata:
        return CheckpointMetadata(
            step=step,
            recipe=self.values,
            recipe_hash=recipe_hash(self.values),
            best=progress["best"],
            history=progress["history"],
            dataset=self.dataset,
            environment=self.environment,
            progress={name: value for name, value in progress.items() if name != "history"},
        )

    def _names(self, step: int, replica: int) -> list[str]:
        return [self.train.name(index) for index in self.order.micro_batch(step, replica).indices]


def resolve_auto(values: dict[str, Any], settled: dict[str, Any], world: World) -> tuple[dict[str, Any], list[str]]:
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
