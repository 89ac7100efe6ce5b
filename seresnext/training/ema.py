"""Exponential moving average of weights and BatchNorm statistics."""

# torch._fused_sgd_ is the kernel of torch.optim.SGD(fused=True), and has no public name.
# pyright: reportPrivateImportUsage=false
import copy

import torch
from torch import Tensor, nn


class Ema:
    """A second model whose floating-point tensors are moving averages (Polyak and Juditsky 1992).

    The decay is a function of the step number, and skipped steps count: the EMA has no counter to save.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._warmup = warmup
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    def decay_at(self, step: int) -> float:
        """Return the decay for the update after step number `step` (from 0).

        The warm-up is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage. The average then
        forgets the random initial weights.
        """
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Move the average towards the trained weights after step number `step` (from 0).

        If `skip`, a float32 number on the device, is 1, the average keeps every bit. The host does not wait for `skip`.
        The update is a step of SGD with learning rate 1 - decay and gradient `average - weights`. torch's fused SGD
        kernel can skip on the device. For the kernel, `average` is a weight decay of 1, and the gradient is `-weights`.
        """
        average, trained = zip(*self._averaged, strict=True)
        torch._fused_sgd_(
            list(average),
            list(trained),
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=1 - self.decay_at(step),
            dampening=0.0,
            nesterov=False,
            maximize=True,  # negates the gradient
            is_first_step=False,
            found_inf=skip,
        )
        # The counters of BatchNorm. A skipped step has already undone its change of the counters.
        for own, counter in self._copied:
            own.copy_(counter)
