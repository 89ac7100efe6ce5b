"""One optimizer step over one global batch, and what it reports.

A global batch is `replicas` micro-batches, spread over the ranks. Each is a logical replica: it draws its dropout and
its mixing by its own number and has BatchNorm statistics of its own, so a step is the same on any number of ranks that
divides the replicas, up to the order of floating-point sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from seresnext.data.augment.mixup import MixupCutmix
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import BatchNormStatistics, DDPOptions, World, wrap_ddp
from seresnext.process.signals import block_stop_signals
from seresnext.randomness import torch_seed_at
from seresnext.runtime import Precision, compile_forward
from seresnext.training.ema import Ema
from seresnext.training.loss import Loss
from seresnext.training.optimizer import set_lr, skip_if


@dataclass(frozen=True)
class StepResult:
    """What one step reports, agreed on by all ranks.

    Losses are one a logical replica, `grad_norm` is the L2 norm of the whole gradient before clipping, `data_wait` the
    mean over ranks of the seconds spent waiting for images, `stop` whether any rank was asked to stop, `save_failed`
    whether rank 0 could not write its last checkpoint, `bad_images` how many were replaced that not all ranks know of.
    `skipped` says that the step changed nothing, because a loss or the gradient was not finite; `loss_scale` is what
    fp16 multiplied the loss by, 1 for other precisions.
    """

    step: int
    losses: tuple[float, ...]
    grad_norm: float
    data_wait: float
    stop: bool
    save_failed: bool = False
    skipped: bool = False
    loss_scale: float = 1.0
    bad_images: int = 0

    @property
    def loss(self) -> float:
        """Mean loss over the global batch."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def overflowed(self) -> bool:
        """Whether it was skipped for what fp16 is used to: a loss scaled up so far that its gradient is not finite.

        The scaler tries higher scales from time to time, and lowers them again. At 1 it is no longer to blame.
        """
        return self.skipped and self.loss_scale > 1 and all(map(math.isfinite, self.losses))


class PendingResult(NamedTuple):
    """A report on its way to the host: its numbers, which are there when `arrival` has passed (None: at once)."""

    numbers: Tensor
    arrival: torch.cuda.Event | None

    @classmethod
    def of(cls, report: Tensor) -> PendingResult:
        """Queue the way of a report to the host. On CUDA nothing waits, neither here nor for what is queued later."""
        if report.device.type != "cuda":
            return cls(report, None)
        numbers = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        numbers.copy_(report, non_blocking=True)
        arrival = torch.cuda.Event(blocking=True)  # Leaves the core to the loader's workers meanwhile.
        arrival.record()
        return cls(numbers, arrival)

    def wait(self) -> list[float]:
        """The numbers, when they have arrived."""
        if self.arrival:
            self.arrival.synchronize()
        return self.numbers.tolist()


class TrainingStep:
    """Forward, backward, all-reduce and update, for one global batch at a time."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        world: World,
        replicas: int,
        precision: Precision,
        compiled: bool,
        seed: int,
        loss: Loss,
        clip_norm: float | None,
        mix: MixupCutmix | None,
        ema: Ema | None,
        exchange: DDPOptions | None = None,
    ) -> None:
        assert replicas % world.size == 0
        self.scaler = precision.scaler(world.device)
        self._model = model
        self._parameters = list(model.parameters())  # Kept: the way to them through all modules is long.
        self._optimizer = optimizer
        self._world = world
        self._replicas = replicas
        self._accumulation = replicas // world.size
        self._precision = precision
        self._seed = seed
        self._loss = loss
        self._clip_norm = clip_norm
        self._mix = mix
        self._ema = ema
        self._statistics = BatchNormStatistics(model, self._accumulation)
        exchange = exchange or DDPOptions()
        self._ddp = wrap_ddp(model, exchange) if world.size > 1 else None
        self._warm_up_passes = exchange.passes_to_settle if world.size > 1 else 1
        forward = self._ddp or model
        self._forward = compile_forward(forward) if compiled else forward
        self._compiled = compiled

    @property
    def own_replicas(self) -> range:
        """The logical replicas that this rank computes."""
        first = self._world.rank * self._accumulation
        return range(first, first + self._accumulation)

    def warm_up(self, images: Tensor, labels: Tensor) -> None:
        """A throw-away forward and backward that leaves no trace, before the first step of a fresh or resumed run.

        DDP reduces gradients in one bucket in its first iteration and re-buckets then
        (torch/nn/parallel/distributed.py, `_rebuild_buckets`). Bucketing decides the order of sums, so without this a
        resumed run would add up its first step otherwise than an uninterrupted one. A static graph takes two passes.
        """
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        for _ in range(self._warm_up_passes):
            with self._compiling():
                with self._precision.autocast(self._world.device):
                    loss = self._loss(self._forward(images), labels)
                loss.backward()
            self._optimizer.zero_grad()
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                buffer.copy_(buffers[name])

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
        """Take step number `step` (from 0) and return its report, for `read`.

        `stop`, `save_failed` and `bad_images` are what this rank has to tell the others. A step in which a loss or the
        gradient is not finite leaves weights, momentum, BatchNorm statistics and the average on all ranks as they were,
        to the bit. Nothing here waits for the device, that decision neither: read the report after the next step was
        queued.
        """
        losses = torch.zeros(self._replicas, device=self._world.device, dtype=self._precision.weights)
        data_wait = 0.0
        self._statistics.begin_step()
        for replica in self.own_replicas:
            batch = next(micro_batches)
            assert (batch.step, batch.replica) == (step, replica)
            data_wait += batch.data_wait
            with self._no_sync() if replica != self.own_replicas[-1] else nullcontext():
                losses[replica] = self._forward_backward(batch)
        notes = torch.tensor([float(stop), float(save_failed), float(bad_images), data_wait], dtype=losses.dtype)
        notes = notes.to(losses.device, non_blocking=True)
        report = self._statistics.end_step(self._world, torch.cat([losses, notes]))
        self.scaler.unscale_(self._optimizer)
        # Of the gradient that DDP has averaged, so all ranks see the same numbers here, and skip the same steps.
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        usable = report[: self._replicas].isfinite().all() & norm.isfinite()
        skip = usable.logical_not().float()
        scale = self.scaler.scale(torch.ones_like(skip))
        self._statistics.undo_if(skip)
        self._update(lr, norm, skip)
        if self._ema:
            self._ema.update(step, skip)
        return PendingResult.of(
            torch.cat([report, *(number.to(report.dtype).reshape(1) for number in (norm, skip, scale))])
        )

    def read(self, step: int, report: PendingResult) -> StepResult:
        """What a step reported. Waits for it to finish on the device, and for no step that was queued after it."""
        *losses, stop, save_failed, bad_images, data_wait, grad_norm, skipped, loss_scale = report.wait()
        return StepResult(
            step,
            tuple(losses),
            grad_norm,
            data_wait / self._world.size,
            stop=stop > 0,
            save_failed=save_failed > 0,
            skipped=skipped > 0,
            loss_scale=loss_scale,
            bad_images=round(bad_images),
        )

    def _forward_backward(self, batch: DeviceBatch) -> Tensor:
        torch.manual_seed(torch_seed_at(self._seed, "step", batch.step, batch.replica))
        images, targets = batch.images, batch.labels
        if self._mix:
            images, targets = self._mix(images, targets, step=batch.step, replica=batch.replica)
        self._statistics.begin_micro_batch()
        with self._compiling():
            with self._precision.autocast(self._world.device):
                logits = self._forward(images)
            loss = self._loss(logits, targets)
            self.scaler.scale(loss / self._accumulation).backward()
        return loss.detach()

    def _compiling(self) -> AbstractContextManager[None]:
        """For what may start the compiler: the first pass, and one with images of another size."""
        return block_stop_signals() if self._compiled else nullcontext()

    def _update(self, lr: float, norm: Tensor, skip: Tensor) -> None:
        if self._clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        set_lr(self._optimizer, lr)
        skip_if(self._optimizer, skip)
        self._optimizer.step()
        # Not scaler.step: it looks at gradients alone, and no rank may update for which another one's loss speaks.
        self.scaler.update()
        self._optimizer.zero_grad()

    def _no_sync(self) -> AbstractContextManager[None]:
        return self._ddp.no_sync() if self._ddp else nullcontext()
