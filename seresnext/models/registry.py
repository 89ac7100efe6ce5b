"""The table of models. A new one is a row here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from seresnext.errors import UsageError
from seresnext.models.senet import SENet
from seresnext.recipe.schema import ModelSection
from seresnext.weights.names import printable


@dataclass(frozen=True)
class Architecture:
    """A network, and what was published of it.

    `params` counts trainable numbers, `multiply_adds` those of convolutions and linear layers for one image of 224x224,
    both with 1000 classes. `top1` and `top5` are percent of ImageNet's validation set, one centre crop of 224x224;
    `interpolation` belongs to the resize before the crop. `weights_bytes` is the size of the file, `weights_url` the
    address.
    """

    blocks: tuple[int, int, int, int]
    params: int
    multiply_adds: int
    top1: float
    top5: float
    interpolation: Literal["bilinear", "bicubic"]
    weights_file: str
    weights_bytes: int
    weights_url: str


# The weights of 50 and 101 were trained in Caffe by Hu et al. and converted for Cadene's pretrained-models.pytorch,
# whose README has their accuracy; those of 26 were trained and measured for timm.
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
_CADENE = "http://data.lip6.fr/cadene/pretrainedmodels"
MODELS = {
    "legacy_seresnext26_32x4d": Architecture(
        blocks=(2, 2, 2, 2),
        params=16_790_280,
        multiply_adds=2_472_099_840,
        top1=77.11,
        top5=93.31,
        interpolation="bicubic",
        weights_file="seresnext26_32x4d-65ebdb501.pth",
        weights_bytes=67_346_327,
        weights_url=f"{_TIMM}/seresnext26_32x4d-65ebdb501.pth",
    ),
    "legacy_seresnext50_32x4d": Architecture(
        blocks=(3, 4, 6, 3),
        params=27_559_896,
        multiply_adds=4_232_994_816,
        top1=79.08,
        top5=94.43,
        interpolation="bilinear",
        weights_file="se_resnext50_32x4d-a260b3a4.pth",
        weights_bytes=110_559_176,
        weights_url=f"{_CADENE}/se_resnext50_32x4d-a260b3a4.pth",
    ),
    "legacy_seresnext101_32x4d": Architecture(
        blocks=(3, 4, 23, 3),
        params=48_955_416,
        multiply_adds=7_974_739_968,
        top1=80.23,
        top5=95.02,
        interpolation="bilinear",
        weights_file="se_resnext101_32x4d-3b2fe3d8.pth",
        weights_bytes=196_466_866,
        weights_url=f"{_CADENE}/se_resnext101_32x4d-3b2fe3d8.pth",
    ),
}

SHORT_NAMES = {name.removeprefix("legacy_").removesuffix("_32x4d"): name for name in MODELS}


def canonical_name(name: str) -> str:
    """`seresnext50` and `legacy_seresnext50_32x4d` are both the latter. Raises UsageError for an unknown name."""
    if name in MODELS:
        return name
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    near = difflib.get_close_matches(name, [*SHORT_NAMES, *MODELS], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UsageError(f"there is no model {printable(name)}{hint}; known: {', '.join([*SHORT_NAMES, *MODELS])}")


def create_model(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_rate: float = 0.0,
    zero_init_last: bool = False,
    drop_path_rate: float = 0.0,
) -> SENet:
    """A freshly initialised network in training mode: images N in_channels H W to logits N num_classes.

    The initial weights come from torch's default generator. Raises UsageError for an unknown name or impossible sizes.
    """
    blocks = MODELS[canonical_name(name)].blocks
    if num_classes < 0 or in_channels < 1 or not (0 <= drop_rate < 1 and 0 <= drop_path_rate < 1):
        raise UsageError(
            f"{name} cannot be made with num_classes={num_classes}, in_channels={in_channels}, drop_rate={drop_rate}, "
            f"drop_path_rate={drop_path_rate}: num_classes is at least 0 (0: no classifier), in_channels at least 1, "
            "both rates from 0 to below 1"
        )
    return SENet(blocks, num_classes, in_channels, drop_rate, zero_init_last, drop_path_rate)


def build_model(section: ModelSection) -> SENet:
    """The model with weights drawn from torch's default generator."""
    return create_model(
        section.name,
        num_classes=section.num_classes,
        in_channels=section.in_channels,
        drop_rate=section.drop_rate,
        zero_init_last=section.zero_init_last,
        drop_path_rate=section.drop_path_rate,
    )
