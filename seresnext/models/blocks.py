"""The two building blocks: squeeze-and-excitation, and the ResNeXt bottleneck that it recalibrates.

Papers: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507); Xie, Girshick, Dollár, Tu, He,
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv:1611.05431). The attributes have the
names and the order of the published weights, which come from `pretrainedmodels/models/senet.py` in Cadene's
pretrained-models.pytorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seresnext.models.block_end import fused_bn_se_add_relu
from seresnext.models.convolutions import GroupedConv2d, PointwiseConv2d, use_cpu_path

# A bottleneck puts out four times the channels it is named by: He et al. 2016 (arXiv:1512.03385), table 1.
EXPANSION = 4


class SqueezeExcitation(nn.Module):
    """Weighs each channel by what the whole image has in all of them: N C H W to N C H W, Hu et al. section 3."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        # The fully connected layers of the paper, as 1x1 convolutions with bias: so the published weights have them.
        self.fc1 = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        # Not `mean`, whose gradient would be divided at every place of the map and not once a channel.
        squeezed = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])  # N C 1 1, eq. 2
        excitation = self.fc2(F.relu(self.fc1(squeezed), inplace=True)).sigmoid()  # N C 1 1, eq. 3
        return x * excitation  # eq. 4


class SEResNeXtBottleneck(nn.Module):
    """Reduce, convolve in groups, expand, recalibrate, add: N in H W to N 4*channels H/stride W/stride.

    The three convolutions are form (c) of Xie et al. figure 3, with `cardinality` groups of `base_width` channels each
    where `channels` is 64, and wider in proportion in later stages. The stride is on the 3x3. `drop_path_rate` is the
    chance, image by image, that only the shortcut is there in training (Huang et al. 2016, arXiv:1603.09382); what is
    left is scaled up by it, so that evaluation changes nothing. It is drawn from torch's default generator.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        cardinality: int,
        base_width: int,
        reduction: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        width = channels * base_width // 64 * cardinality
        out_channels = channels * EXPANSION
        self.conv1 = PointwiseConv2d(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = GroupedConv2d(width, stride, groups=cardinality)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = PointwiseConv2d(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se_module = SqueezeExcitation(out_channels, reduction)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            # He et al., option B: a projection where the shape changes, else the identity.
            self.downsample = nn.Sequential(
                PointwiseConv2d(in_channels, out_channels, stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # N width H W
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)  # N width H/stride W/stride
        x = self.conv3(x)  # N 4*channels H/stride W/stride
        kept = drop_path_mask(x, self.drop_path_rate) if self.drop_path_rate and self.training else None
        # Not for the compiler, which would make a graph of a part for each image.
        if self.bn3.training and use_cpu_path(x) and not torch.compiler.is_compiling():
            return fused_bn_se_add_relu(x, shortcut, self.bn3, self.se_module.fc1, self.se_module.fc2, kept)
        x = self.se_module(self.bn3(x))
        if kept is not None:
            x = x * kept
        return F.relu(x.add_(shortcut), inplace=True)


def drop_path_mask(x: Tensor, rate: float) -> Tensor:
    """What drop path multiplies branches N C H W by, N 1 1 1: 0 with the chance `rate` (below 1), else 1 / (1 - rate).

    The same draws as torchvision's `stochastic_depth` by rows, whose import takes as long as torch's own.
    """
    kept = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - rate)
    return kept.div_(1 - rate)
