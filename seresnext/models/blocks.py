"""The two building blocks: squeeze-and-excitation, and the ResNeXt bottleneck.

Papers: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507); Xie, Girshick, Dollár, Tu, He,
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv:1611.05431). Names and order of the
attributes are the names and order in the published weights, from `pretrainedmodels/models/senet.py` in Cadene's
pretrained-models.pytorch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seresnext.models import cpu

# A bottleneck has four times its stage's `channels` as outputs: He et al. 2016 (arXiv:1512.03385), table 1.
EXPANSION = 4


class SqueezeExcitation(nn.Module):
    """Channel weights computed from the means of all channels: N C H W to N C H W, Hu et al. section 3."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        # The paper's fully connected layers are 1x1 convolutions with bias in the published weights.
        self.fc1 = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        # The gradient of `mean` is divided at every pixel; the gradient of this form is divided once per channel.
        squeezed = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])  # N C 1 1, eq. 2
        excitation = self.fc2(F.relu(self.fc1(squeezed), inplace=True)).sigmoid()  # N C 1 1, eq. 3
        return x * excitation  # eq. 4


class SEResNeXtBottleneck(nn.Module):
    """A residual block, N in H W to N 4*channels H/stride W/stride: reduce, convolve in groups, expand, recalibrate.

    The three convolutions are form (c) of Xie et al. figure 3. The 3x3 has `cardinality` groups and the stride. A group
    has `base_width` channels where `channels` is 64, and proportionally more in later stages. `drop_path_rate` is the
    probability that an image skips the branch in training (Huang et al. 2016, arXiv:1603.09382). torch's default
    generator draws the images. The branches of the other images are scaled up to keep the mean.
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
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se_module = SqueezeExcitation(out_channels, reduction)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            # He et al., option B: a projection if the shape changes, otherwise the identity.
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        if cpu.has_kernels_for(self, x):
            return cpu.train_bottleneck(self, x, self._drop_path_mask(x))
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # N width H W
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)  # N width H/stride W/stride
        x = self.se_module(self.bn3(self.conv3(x)))  # N 4*channels H/stride W/stride
        mask = self._drop_path_mask(x)
        if mask is not None:
            x = x * mask
        return F.relu(x.add_(shortcut), inplace=True)

    def _drop_path_mask(self, x: Tensor) -> Tensor | None:
        """Return factors N 1 1 1 for branches: 0 with probability `drop_path_rate`, otherwise 1 / (1 - rate).

        Return None if no branch is dropped. The draws are the draws of torchvision's `stochastic_depth` in mode `row`.
        """
        if not (self.training and self.drop_path_rate):
            return None
        mask = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
        return mask.bernoulli_(1 - self.drop_path_rate).div_(1 - self.drop_path_rate)
