"""One optimizer step over one global batch.

A global batch is `replicas` micro-batches, spread over the ranks. Each micro-batch is a logical replica with its own
dropout, mixing and BatchNorm statistics. A step is therefore the same on any number of ranks that divides the replicas,
up to the order of floating-point sums.
"""

import gc
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
from seresnext.distributed import BatchNormStatistics, RankTimer, World, wrap_ddp
from seresnext.models import SENet
from seresnext.process.signals import block_stop_signals
from seresnext.randomness import torch_seed_at
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS, compile_forward
from seresnext.training.ema import Ema
from seresnext.training.loss import Loss
from seresnext.training.optimizer import set_lr, skip_if
from seresnext.training.result import PendingResult, count_correct


@dataclass(eq=False)
class TrainingStep:
    """Forward, backward, all-reduce and update, for one global batch at a time.

    `recipe` has every `auto` resolved. From step `thaw_at` on (from 0) no stage is frozen. None: frozen stages stay
    frozen. `timer` is None in a single process.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    recipe: Recipe
    world: World
    mix: MixupCutmix | None = None
    ema: Ema | None = None
    thaw_at: int | None = None

    def __post_init__(self) -> None:
        batch, runtime, world = self.recipe.batch, self.recipe.runtime, self.world
        self._replicas = batch.global_size // batch.micro_size
        assert self._replicas % world.size == 0
        self._precision = PRECISIONS[runtime.precision]
        self.scaler = self._precision.scaler(world.device)
        self._parameters = list(self.model.parameters())  # Cached: the walk through all modules is slow.
        self._accumulation = self._replicas // world.size
        first = world.rank * self._accumulation
        self.own_replicas = range(first, first + self._accumulation)  # the logical replicas that this rank computes
        self.image_size = 0  # of the last step
        self.timer = RankTimer(world.device) if world.size > 1 else None
        # The first pass and a pass with a new image size start the compiler, whose processes a signal would end.
        self._compiling = block_stop_signals if runtime.compile is True else nullcontext
        self._wrap()

    def _wrap(self) -> None:
        """Wrap the model. DDP and the BatchNorm statistics know only stages that train."""
        self._statistics = BatchNormStatistics(self.model, self._accumulation)
        runtime = self.recipe.runtime
        compress = runtime.compress_gradients == "bf16"
        self._ddp = wrap_ddp(self.model, compress, self.timer) if self.timer else None
        forward = self._ddp or self.model
        self._forward = compile_forward(forward) if runtime.compile is True else forward

    def warm_up(self, images: Tensor, labels: Tensor) -> None:
        """Run forward and backward once and discard the results, before the first step of a fresh or resumed run.

        DDP reduces all gradients in one bucket in its first iteration and makes new buckets then
        (torch/nn/parallel/distributed.py, `_rebuild_buckets`). Buckets decide the order of sums. Without the warm-up,
        the first step of a resumed run would add in another order than the uninterrupted run.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with self._compiling():
            with self._precision.autocast(self.world.device):
                loss = self.loss(self._forward(images), labels)
            loss.backward()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def freeze(self, stages: Sequence[str], images: Tensor, labels: Tensor) -> None:
        """Freeze these stages, train all others, and warm up: the next step is as in a run that is resumed here."""
        assert isinstance(self.model, SENet)
        self.model.freeze(stages)
        del self._ddp, self._forward
        gc.collect()  # The old DDP, which has a copy of all gradients, may be in a reference cycle.
        self._wrap()
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
        device, clip_norm = self.world.device, self.recipe.optimizer.clip_norm
        if step == self.thaw_at:
            first = next(micro_batches)
            self.freeze((), first.images, first.labels)
            micro_batches = itertools.chain([first], micro_batches)
        outcomes = torch.zeros(2, self._replicas, device=device, dtype=self._precision.weights)
        data_wait = 0.0
        self._statistics.begin_step()
        for replica in self.own_replicas:
            with record_function("data"):
                batch = next(micro_batches)
            assert (batch.step, batch.replica) == (step, replica)
            data_wait, self.image_size = data_wait + batch.data_wait, batch.images.shape[-1]
            if self.timer:
                self.timer.start(step, batch.data_wait)
            is_last = replica == self.own_replicas[-1]
            with self._ddp.no_sync() if self._ddp and not is_last else nullcontext():
                outcomes[:, replica] = self._forward_backward(batch)
            if self.timer:
                self.timer.stop()  # The hook of DDP has stopped the timer in the last micro-batch.
        flags = torch.tensor([stop, save_failed, bad_images, data_wait], dtype=outcomes.dtype)
        flags = flags.to(device, non_blocking=True)
        report = torch.cat([outcomes[0], flags, outcomes[1].sum(0, keepdim=True)])
        sums = self._statistics.end_step(self.world, report)
        self.scaler.unscale_(self.optimizer)
        # DDP has averaged the gradient, so all ranks compute the same norm and skip the same steps.
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        usable = sums[: self._replicas].isfinite().all() & norm.isfinite()
        skip = usable.logical_not().float()
        scale = self.scaler.scale(torch.ones_like(skip))
        self._statistics.undo_if(skip)
        if clip_norm is not None:
            clip_grads_with_norm_(self._parameters, clip_norm, norm)
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
        torch.manual_seed(torch_seed_at(self.recipe.runtime.seed, "step", batch.step, batch.replica))
        images, targets = batch.images, batch.labels
        if self.mix:
            images, targets = self.mix(images, targets, step=batch.step, replica=batch.replica)
        self._statistics.begin_micro_batch()
        with self._compiling():
            with self._precision.autocast(self.world.device):
                logits = self._forward(images)
            loss = self.loss(logits, targets)
            self.scaler.scale(loss / self._accumulation).backward()
        return torch.stack([loss.detach(), count_correct(logits.detach(), targets).to(loss.dtype)])
