"""SE-ResNeXt, in the form of Hu et al. and in timm's newer form.

The layer names, and so the keys of a state dict, come from Cadene's pretrained-models.pytorch, which converted the
weights of Hu et al. from Caffe. timm calls these networks `legacy_seresnext*`.

timm's `seresnext*` differ in the pooling of the stem (`stem_pool`). All shapes are equal, so weights of one form load
into the other form and give wrong results. `pretrained.load_weights` refuses such weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seresnext.models.blocks import EXPANSION, SEResNeXtBottleneck

StemPool = Literal["ceil", "padded"]
"""How the stem's pooling treats the border. `ceil`, Caffe's way: the size is rounded up, the last window overlaps the
border. `padded`: one pixel of padding on each side."""


class SENet(nn.Module):
    """A network from images N C H W to logits N num_classes.

    H and W are free. The published weights were trained on 224. `blocks` counts the bottlenecks of the four stages.
    `drop_rate` is the dropout before the classifier. With 0 classes there is no classifier, and the output is N 2048.

    `zero_init_last` sets the weight of the last BatchNorm of every block to 0, so that every block starts as the
    identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1). `drop_path_rate` is the rate of the last block. The
    rates of the earlier blocks grow linearly to this rate (Huang et al. 2016, arXiv:1603.09382, eq. 4).

    With `grad_checkpointing` set, training keeps only the input of each block and computes the rest again in the
    backward pass: less memory, about a third more time, the same numbers.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_rate: float = 0.0,
        zero_init_last: bool = False,
        drop_path_rate: float = 0.0,
        stem_pool: StemPool = "ceil",
        cardinality: int = 32,
        base_width: int = 4,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.num_features = 512 * EXPANSION
        self.drop_rate = drop_rate
        self.stem_pool = stem_pool
        self.grad_checkpointing = False
        self._frozen: tuple[str, ...] = ()
        self.layer0 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu1=nn.ReLU(inplace=True),
            )
        )
        is_padded = stem_pool == "padded"
        self.pool0 = nn.MaxPool2d(kernel_size=3, stride=2, padding=int(is_padded), ceil_mode=not is_padded)
        block = partial(SEResNeXtBottleneck, cardinality=cardinality, base_width=base_width, reduction=reduction)
        rates = (drop_path_rate * number / sum(blocks) for number in range(1, sum(blocks) + 1))
        self.layer1 = _stage(block, rates, in_channels=64, channels=64, count=blocks[0], stride=1)
        self.layer2 = _stage(block, rates, in_channels=256, channels=128, count=blocks[1], stride=2)
        self.layer3 = _stage(block, rates, in_channels=512, channels=256, count=blocks[2], stride=2)
        self.layer4 = _stage(block, rates, in_channels=1024, channels=512, count=blocks[3], stride=2)
        self.last_linear = _classifier(self.num_features, num_classes)
        self._initialise(zero_init_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, N num_classes, for images N C H W."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map, N 2048 h w, for images N C H W: h is about H/32, and 7 for 224."""
        x = self.layer0(images)  # N 64 H/2 W/2
        x = self.pool0(x)  # N 64 H/4 W/4
        x = self._run(self.layer1, x)  # N 256 H/4 W/4
        x = self._run(self.layer2, x)  # N 512 H/8 W/8
        x = self._run(self.layer3, x)  # N 1024 H/16 W/16
        return self._run(self.layer4, x)  # N 2048 H/32 W/32

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits, N num_classes, for features N 2048 h w."""
        pooled = features.mean((2, 3))  # N 2048
        return self.last_linear(F.dropout(pooled, self.drop_rate, self.training))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by an untrained one, or by none for 0 classes. Build the optimizer afterwards."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.last_linear = _classifier(self.num_features, num_classes).to(like.device, like.dtype)

    def freeze(self, stages: Sequence[str]) -> None:
        """Freeze these stages among `layer0` to `layer4`: no gradients, and BatchNorm's statistics stay.

        All other stages train. DDP and BatchNormStatistics have to be made again: both know the stages that train.
        """
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(True)
        self._frozen = tuple(stages)
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> SENet:
        """Set the mode of all modules, except for the frozen stages, which stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and stage.training and torch.is_grad_enabled()):
            return stage(x)
        for block in stage:
            x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_recomputation, block))
        return x

    def _initialise(self, zero_init_last: bool) -> None:
        """Draw the weights of every convolution: Kaiming normal by fan-out (He et al. 2015, arXiv:1502.01852, eq. 14).

        timm does the same (`timm/models/senet.py`, `_weight_init`), also for squeeze-and-excitation. All other layers
        have torch's defaults. torch's fan-out counts the outputs of all groups, so the 3x3 weights are smaller by the
        root of the cardinality.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, SEResNeXtBottleneck):
                nn.init.zeros_(module.bn3.weight)


def _stage(
    block: Callable[..., SEResNeXtBottleneck],
    rates: Iterator[float],
    in_channels: int,
    channels: int,
    count: int,
    stride: int,
) -> nn.Sequential:
    """Return `count` blocks with 4*channels outputs. The first has the stride. Each takes the next drop path rate."""
    first = block(in_channels, channels, stride, drop_path_rate=next(rates))
    rest = (block(channels * EXPANSION, channels, 1, drop_path_rate=next(rates)) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def _recomputation(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's forward pass and of the recomputation, for `checkpoint`."""
    return nullcontext(), _unchanged_statistics(block)


@contextmanager
def _unchanged_statistics(block: nn.Module) -> Iterator[None]:
    """Restore BatchNorm's running statistics at the end: the forward pass has already updated the statistics."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()
