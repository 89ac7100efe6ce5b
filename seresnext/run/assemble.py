"""The objects of one training run, built from the recipe on every rank alike."""

import gc
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seresnext.checkpoint import contents
from seresnext.checkpoint.contents import CheckpointMetadata, StateTensors
from seresnext.checkpoint.mirror import Mirror
from seresnext.data import pipeline
from seresnext.data.augment.crop import build_image_size_schedule
from seresnext.data.augment.mixup import build_mixup_cutmix
from seresnext.data.loading.loader import evaluation_keys, train_keys
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.substitute import BadImageCounter
from seresnext.distributed import World
from seresnext.errors import CheckpointError
from seresnext.metrics.console import Console
from seresnext.metrics.logger import RunLogger
from seresnext.models import SENet, build_model, first_weights, open_weights
from seresnext.process.signals import StopRequest
from seresnext.randomness import torch_seed_at
from seresnext.recipe import Recipe, check_lengths, recipe_hash, to_values
from seresnext.run.environment import describe_environment, resolve_auto
from seresnext.run.folder import RunFolder
from seresnext.run.opening import open_splits
from seresnext.run.resume import LoadedCheckpoint
from seresnext.runtime import PRECISIONS, make_deterministic, tune_malloc
from seresnext.training.ema import Ema
from seresnext.training.loss import build_class_weights, build_loss
from seresnext.training.optimizer import build_optimizer, optimizer_state, share_step_count
from seresnext.training.plan import Plan, Progress, build_plan
from seresnext.training.saving import Saver
from seresnext.training.schedule import build_schedule
from seresnext.training.step import TrainingStep
from seresnext.training.trainer import Trainer


def new_model(recipe: Recipe, world: World) -> SENet:
    """Build the model of a recipe on the device, with its first random weights."""
    torch.manual_seed(torch_seed_at(recipe.runtime.seed, "init"))
    model = build_model(recipe.model)
    model.grad_checkpointing = recipe.runtime.grad_checkpointing
    # The model has its final format before weights are loaded: a model in fp32 would round weights in fp64.
    PRECISIONS[recipe.runtime.precision].apply_to(model, world.device, recipe.runtime.channels_last is not False)
    return model


def build_step(
    recipe: Recipe, model: SENet, plan: Plan, world: World, class_weights: Tensor | None = None
) -> TrainingStep:
    """Build the training step of a recipe, with loss, optimizer and average (EMA)."""
    return TrainingStep(
        model,
        build_optimizer(model, recipe.optimizer, later=recipe.model.frozen),
        loss=build_loss(recipe.loss, class_weights),
        recipe=recipe,
        world=world,
        mix=build_mixup_cutmix(recipe, plan.steps_per_epoch),
        ema=Ema(model, recipe.ema.decay, recipe.ema.warmup) if recipe.ema else None,
        thaw_at=plan.thaw_at,
    )


class Run:
    """The objects of one training run, built on every rank alike.

    `recipe` has every `auto` resolved. `checkpoint` is of the run to resume, and None for a fresh start. The model of a
    resumed run gets no first weights: the checkpoint has the weights.
    """

    def __init__(self, recipe: Recipe, checkpoint: LoadedCheckpoint | None, world: World, console: Console) -> None:
        self._world = world
        self._console = console
        with world.agreeing():
            recipe, notices = resolve_auto(recipe, checkpoint and checkpoint.recipe, world)
        make_deterministic(recipe.runtime.deterministic)
        tune_malloc(world.device)
        self.recipe, self.train, self.val = open_splits(recipe, checkpoint, world, console.print)
        recipe = self.recipe
        self.environment = describe_environment(world)
        self._evaluation_size = recipe.evaluation.batch_size or recipe.batch.micro_size
        self.dataset = pipeline.describe_data(self.train, self.val)  # in checkpoints
        with world.downloading(), world.agreeing():
            pipeline.check_same_data(world, self.train, self.val)
            self.order = pipeline.build_order(recipe, self.train)
            notices += check_lengths(recipe, self.order.steps_per_epoch)
            self.plan = build_plan(recipe, self.order.steps_per_epoch)
            self.model = new_model(recipe, world)
            if recipe.model.weights and checkpoint is None:
                loaded = open_weights(first_weights(recipe.model))
                notices += loaded.load_into(self.model, recipe.model.reset_head)
        self.model.freeze(recipe.model.never_trained)
        for notice in notices:
            console.print(notice)
        class_weights = build_class_weights(recipe, self.train, world.device)
        self.step = build_step(recipe, self.model, self.plan, world, class_weights)
        self.ema, self.optimizer = self.step.ema, self.step.optimizer
        self._bad_images = BadImageCounter(recipe.data.max_bad_images, world, console.print)

    def trainer(
        self, folder: RunFolder | None, checkpoint: LoadedCheckpoint | None, progress: Progress, stop: StopRequest
    ) -> Trainer:
        """Return the trainer at `progress`, with the tensors of the checkpoint, if any. Warm up the training step.

        Without a folder (a dry run) the trainer writes nothing.
        """
        recipe = self.recipe
        self.warm_up(progress.step)
        logger = RunLogger(folder.path if folder else None, self._console, self._world, recipe, self.train.classes)
        with self._world.agreeing():
            if checkpoint:
                live = self.state()
                contents.restore(checkpoint.tensors, live)
                share_step_count(self.optimizer, live["optimizer"])
                contents.load_scaler_state(self.step.scaler, live["scaler"])
            logger.open(progress.step, progress.evaluated, progress.logged)
        gc.enable()  # The garbage collector is off during the start of the process (train.py).
        return Trainer(
            world=self._world,
            recipe=recipe,
            plan=self.plan,
            progress=progress,
            step=self.step,
            schedule=build_schedule(recipe, self.plan),
            train_batches=self.train_batches,
            names=lambda step, replica: [self.train.name(i) for i in self.order.micro_batch(step, replica).indices],
            bad_images=self._bad_images,
            val_batches=self._validation_batches,
            num_val_batches=math.ceil(len(self.val) / self._evaluation_size),
            models={"model": self.model, **({"ema": self.ema.model} if self.ema else {})},
            classes=self.train.classes,
            saver=self.saver(folder.checkpoints if folder else None, folder and folder.mirror),
            logger=logger,
            stop=stop,
        )

    def warm_up(self, step: int = 0) -> None:
        """Warm up the training step with images of the largest size: too large a batch runs out of memory here.

        All stages are warmed up first. Those that are still frozen after `step` completed steps are frozen then.
        """
        images, labels = pipeline.stand_in_batch(self.recipe, self._world.device)
        self.step.warm_up(images, labels)
        if step < (self.plan.thaw_at or 0):
            self.step.freeze(self.recipe.model.frozen, images, labels)

    def saver(self, folder: Path | None, mirror: Mirror | None = None) -> Saver:
        """Return the saver of checkpoints into the folder `checkpoints`. Without a folder the saver writes nothing."""
        return Saver(
            self._world,
            folder,
            tensors=self.state,
            metadata=self._metadata,
            warn=self._console.print,
            keep=self.recipe.checkpoint.keep,
            keep_every=self.plan.keep_every,
            continue_on_failure=self.recipe.checkpoint.on_failure == "continue",
            mirror=mirror,
        )

    def state(self) -> StateTensors:
        """Return the live tensors that a checkpoint saves."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else {},
            "optimizer": optimizer_state(self.model, self.optimizer),
            "scaler": contents.scaler_state(self.step.scaler),
        }

    def check_fits(self, checkpoint: LoadedCheckpoint) -> None:
        """Raise CheckpointError unless this run can resume from a checkpoint. Change nothing."""
        metadata = checkpoint.metadata
        contents.check_fits(checkpoint.tensors, self.state(), str(checkpoint.path))
        if metadata.step > self.plan.total:
            raise CheckpointError(
                f"{checkpoint.path} is of step {metadata.step}, and the run has {self.plan.total} steps; use another "
                "checkpoint of the run, or a larger length"
            )

    def _metadata(self, step: int, progress: dict[str, Any]) -> CheckpointMetadata:
        values = to_values(self.recipe)
        return CheckpointMetadata(
            step,
            values,
            recipe_hash(values),
            best=progress["best"],
            history=progress["history"],
            dataset=self.dataset,
            environment=self.environment,
            progress={name: value for name, value in progress.items() if name != "history"},
        )

    def train_batches(self, start: int, end: int) -> AbstractContextManager[Iterator[DeviceBatch]]:
        """Return the micro-batches of this rank's logical replicas, from step `start` to before step `end`."""
        sizes = build_image_size_schedule(self.recipe, self.plan.steps_per_epoch)
        keys = train_keys(self.order, self.step.own_replicas, start, end, sizes)
        return pipeline.device_batches(
            self.train, keys, self.recipe, self._world, training=True, bad_images=self._bad_images
        )

    def _validation_batches(self) -> AbstractContextManager[Iterator[DeviceBatch]]:
        keys = evaluation_keys(len(self.val), self._evaluation_size, self._world.rank, self._world.size)
        return pipeline.device_batches(self.val, keys, self.recipe, self._world)
