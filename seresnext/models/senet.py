"""SE-ResNeXt as its published weights need it, to the rounding of the stem's pooling.

The layer names, and so the keys of a state dict, are those of Cadene's pretrained-models.pytorch, which converted the
weights of Hu et al. from Caffe. timm calls these networks `legacy_seresnext*`. Its `seresnext*` are others: they pad
the stem's pooling instead of rounding its size up, so weights renamed for them load, and give wrong results.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seresnext.models.blocks import EXPANSION, SEResNeXtBottleneck


class SENet(nn.Module):
    """Images N C H W to logits N num_classes. H and W are free; 224 is what the published weights were trained on.

    `blocks` counts the bottlenecks of the four stages. `drop_rate` is the dropout before the classifier. With
    `zero_init_last` every block starts as the identity, the weight of its last BatchNorm being 0 (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1). `drop_path_rate` is that of the last block, those before have less in proportion to
    their number (Huang et al. 2016, arXiv:1603.09382, eq. 4). With 0 classes there is no classifier and the output is
    N 2048.

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
        cardinality: int = 32,
        base_width: int = 4,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.num_features = 512 * EXPANSION
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self._frozen: tuple[str, ...] = ()
        self.layer0 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu1=nn.ReLU(inplace=True),
            )
        )
        # Caffe rounds sizes up: 112 becomes 56 without padding, and the last window looks over the edge.
        self.pool0 = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        block = partial(SEResNeXtBottleneck, cardinality=cardinality, base_width=base_width, reduction=reduction)
        rates = (drop_path_rate * number / sum(blocks) for number in range(1, sum(blocks) + 1))
        self.layer1 = _stage(block, rates, in_channels=64, channels=64, count=blocks[0], stride=1)
        self.layer2 = _stage(block, rates, in_channels=256, channels=128, count=blocks[1], stride=2)
        self.layer3 = _stage(block, rates, in_channels=512, channels=256, count=blocks[2], stride=2)
        self.layer4 = _stage(block, rates, in_channels=1024, channels=512, count=blocks[3], stride=2)
        self.last_linear = _classifier(self.num_features, num_classes)
        self._initialise(zero_init_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, N num_classes, of images N C H W."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last feature map, N 2048 h w, of images N C H W: h and w are 7 for 224, in general about H/32, W/32."""
        x = self.layer0(images)  # N 64 H/2 W/2
        x = self.pool0(x)  # N 64 H/4 W/4
        x = self._run(self.layer1, x)  # N 256 H/4 W/4
        x = self._run(self.layer2, x)  # N 512 H/8 W/8
        x = self._run(self.layer3, x)  # N 1024 H/16 W/16
        return self._run(self.layer4, x)  # N 2048 H/32 W/32

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, N num_classes, of features N 2048 h w; with `pre_logits` what the classifier would see, N 2048."""
        x = features.mean((2, 3))  # N 2048
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.last_linear(x)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, untrained classifier in place, or none at all for 0 classes. Make the optimizer afterwards."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.last_linear = _classifier(self.num_features, num_classes).to(like.device, like.dtype)

    def freeze(self, stages: Sequence[str]) -> None:
        """Train these of `layer0` to `layer4` no more: no gradients, and BatchNorm keeps to the statistics it has."""
        self._frozen = tuple(stages)
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> SENet:
        """Set the mode of everything but the frozen stages, which stay in evaluation mode."""
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
        """Kaiming normal by fan-out for every convolution (He et al. 2015, arXiv:1502.01852, eq. 14).

        As timm does (`timm/models/senet.py`, `_weight_init`): squeeze-and-excitation included, torch's defaults for all
        else, and torch's notion of fan-out, which counts the outputs of all groups, so that the 3x3 start smaller
        by the root of the cardinality. Cadene's file leaves all to torch's defaults; it was for loading weights only.
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
    """`count` blocks of 4*channels outputs; the first one may shrink the map. Takes their drop path rates in turn."""
    first = block(in_channels, channels, stride, drop_path_rate=next(rates))
    rest = (block(channels * EXPANSION, channels, 1, drop_path_rate=next(rates)) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def _recomputation(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a block's forward pass and of its recomputation, for `checkpoint`."""
    return nullcontext(), _unchanged_statistics(block)


@contextmanager
def _unchanged_statistics(block: nn.Module) -> Iterator[None]:
    """Take back what BatchNorm makes of its running statistics: the forward pass has already updated them."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()
