"""One optimizer step over one global batch.

A global batch is `replicas` micro-batches, spread over the ranks. Each micro-batch is a logical replica with its own
dropout, mixing and BatchNorm statistics. A step is therefore the same on any number of ranks that divides the replicas,
up to the order of floating-point sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.profiler import record_function

from seresnext.data.augment.mixup import MixupCutmix
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.randomness import torch_seed_at
from seresnext.runtime import Precision
from seresnext.training.ema import Ema
from seresnext.training.loss import Loss
from seresnext.training.optimizer import set_lr, skip_if
from seresnext.training.result import PendingResult, count_correct
from seresnext.training.wrapped import WrappedModel


@dataclass(frozen=True)
class StepSettings:
    """The settings of a step. `replicas` is the number of micro-batches in a global batch.

    From step `thaw_at` on (from 0) no stage is frozen. None: frozen stages stay frozen. With `compress`, ranks send
    gradients as bfloat16.
    """

    replicas: int
    seed: int
    precision: Precision
    compiled: bool = False
    clip_norm: float | None = None
    thaw_at: int | None = None
    compress: bool = False


@dataclass(eq=False)
class TrainingStep:
    """Forward, backward, all-reduce and update, for one global batch at a time."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    settings: StepSettings
    world: World
    mix: MixupCutmix | None = None
    ema: Ema | None = None

    def __post_init__(self) -> None:
        assert self.settings.replicas % self.world.size == 0
        self.scaler = self.settings.precision.scaler(self.world.device)
        self._parameters = list(self.model.parameters())  # Cached: the walk through all modules is slow.
        self._accumulation = self.settings.replicas // self.world.size
        first = self.world.rank * self._accumulation
        self.own_replicas = range(first, first + self._accumulation)  # the logical replicas that this rank computes
        compress, compiled = self.settings.compress, self.settings.compiled
        self._wrapped = WrappedModel(self.model, self.world, self._accumulation, compress, compiled)
        self.timer = self._wrapped.timer
        self.image_size = 0  # of the last step

    def warm_up(self, images: Tensor, labels: Tensor) -> None:
        """Run forward and backward once and discard the results, before the first step of a fresh or resumed run.

        DDP reduces all gradients in one bucket in its first iteration and makes new buckets then
        (torch/nn/parallel/distributed.py, `_rebuild_buckets`). Buckets decide the order of sums. Without the warm-up,
        the first step of a resumed run would add in another order than the uninterrupted run.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with self._wrapped.compiling():
            with self.settings.precision.autocast(self.world.device):
                loss = self.loss(self._wrapped.forward(images), labels)
            loss.backward()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def freeze(self, stages: Sequence[str], images: Tensor, labels: Tensor) -> None:
        """Freeze these stages, train all others, and warm up: the next step is as in a run that is resumed here."""
        self._wrapped.freeze(stages)
        self.warm_up(images, labels)

    def __call__(
        self,
        micro_batches: Iterator[DeviceBatch],
        *,
        step: int,
        lr: float,
        stop: bool,
        save_failed: bool = False,
        bad_images: int = 0,
    ) -> PendingResult:
        """Queue step number `step` (from 0) and return its pending result.

        `stop`, `save_failed` and `bad_images` are this rank's flags; all ranks see their sum. A step with a loss or
        gradient that is not finite leaves weights, optimizer state, BatchNorm statistics and the EMA unchanged on all
        ranks, to the bit. The host does not wait for the device here, so read the result after queueing the next step.
        """
        settings, device, wrapped = self.settings, self.world.device, self._wrapped
        if step == settings.thaw_at:
            first = next(micro_batches)
            self.freeze((), first.images, first.labels)
            micro_batches = itertools.chain([first], micro_batches)
        outcomes = torch.zeros(2, settings.replicas, device=device, dtype=settings.precision.weights)
        data_wait = 0.0
        wrapped.statistics.begin_step()
        for replica in self.own_replicas:
            with record_function("data"):
                batch = next(micro_batches)
            assert (batch.step, batch.replica) == (step, replica)
            data_wait, self.image_size = data_wait + batch.data_wait, batch.images.shape[-1]
            if self.timer:
                self.timer.start(step, batch.data_wait)
            is_last = replica == self.own_replicas[-1]
            with wrapped.ddp.no_sync() if wrapped.ddp and not is_last else nullcontext():
                outcomes[:, replica] = self._forward_backward(batch)
        flags = torch.tensor([stop, save_failed, bad_images, data_wait], dtype=outcomes.dtype)
        flags = flags.to(device, non_blocking=True)
        report = torch.cat([outcomes[0], flags, outcomes[1].sum(0, keepdim=True)])
        sums = wrapped.statistics.end_step(self.world, report)
        self.scaler.unscale_(self.optimizer)
        # DDP has averaged the gradient, so all ranks compute the same norm and skip the same steps.
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        usable = sums[: settings.replicas].isfinite().all() & norm.isfinite()
        skip = usable.logical_not().float()
        scale = self.scaler.scale(torch.ones_like(skip))
        wrapped.statistics.undo_if(skip)
        if settings.clip_norm is not None:
            clip_grads_with_norm_(self._parameters, settings.clip_norm, norm)
        with record_function("optimizer"):
            set_lr(self.optimizer, lr)
            skip_if(self.optimizer, skip)
            self.optimizer.step()
            # scaler.step would skip for this rank's gradient alone. A loss of another rank must skip the step, too.
            self.scaler.update()
            self.optimizer.zero_grad()
            if self.ema:
                self.ema.update(step, skip)
        numbers = torch.cat([sums, *(number.to(sums.dtype).reshape(1) for number in (norm, skip, scale))])
        return PendingResult.queue(step, self.world.size, numbers)

    @record_function("forward and backward")
    def _forward_backward(self, batch: DeviceBatch) -> Tensor:
        """Return the loss and the number of correct images."""
        torch.manual_seed(torch_seed_at(self.settings.seed, "step", batch.step, batch.replica))
        images, targets = batch.images, batch.labels
        if self.mix:
            images, targets = self.mix(images, targets, step=batch.step, replica=batch.replica)
        self._wrapped.statistics.begin_micro_batch()
        with self._wrapped.compiling():
            with self.settings.precision.autocast(self.world.device):
                logits = self._wrapped.forward(images)
            loss = self.loss(logits, targets)
            self.scaler.scale(loss / self._accumulation).backward()
        return torch.stack([loss.detach(), count_correct(logits.detach(), targets).to(loss.dtype)])
