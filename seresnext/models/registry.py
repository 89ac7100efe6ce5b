"""The table of models. A new model is a row here and a name in `recipe/schema.py`."""

import difflib
from dataclasses import dataclass
from typing import Literal

from seresnext.errors import UsageError, printable
from seresnext.models.senet import SENet, StemPool
from seresnext.recipe.schema import ModelSection


@dataclass(frozen=True)
class Architecture:
    """A network and the weights that were published for it.

    `top1` and `top5` are percent of ImageNet's validation set, for one centre crop after the preprocessing by
    `image_size`, `crop_pct` and `interpolation`. The first of `weights_urls` is the address that answers today. The
    last is the address of the file that was measured, and `weights_bytes` the size of this file, None if unknown.
    """

    blocks: tuple[int, int, int, int]
    stem_pool: StemPool
    top1: float
    top5: float
    weights_urls: tuple[str, ...]
    weights_bytes: int | None = None
    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


# Sources of the `legacy_` weights: Hu et al. trained 50 and 101 in Caffe. Cadene's pretrained-models.pytorch converted
# and measured them; that server is reported dead. timm's senet.py has the addresses of copies, which have other names
# and other bytes. timm trained and measured 26. The accuracies of the other two are in timm's
# results/results-imagenet.csv under `seresnext50_32x4d.racm_in1k` and `seresnext101_32x4d.gluon_in1k`.
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1"
_CADENE = "http://data.lip6.fr/cadene/pretrainedmodels"
# fmt: off
MODELS = {
    "legacy_seresnext26_32x4d": Architecture(
        blocks=(2, 2, 2, 2), stem_pool="ceil", top1=77.11, top5=93.31, weights_bytes=67_346_327,
        weights_urls=(f"{_TIMM}/seresnext26_32x4d-65ebdb501.pth",),
    ),
    "legacy_seresnext50_32x4d": Architecture(
        blocks=(3, 4, 6, 3), stem_pool="ceil", top1=79.08, top5=94.43, weights_bytes=110_559_176,
        weights_urls=(f"{_TIMM}/legacy_se_resnext50_32x4d-f3651bad.pth", f"{_CADENE}/se_resnext50_32x4d-a260b3a4.pth"),
        interpolation="bilinear",
    ),
    "legacy_seresnext101_32x4d": Architecture(
        blocks=(3, 4, 23, 3), stem_pool="ceil", top1=80.23, top5=95.02, weights_bytes=196_466_866,
        interpolation="bilinear", weights_urls=(
            f"{_TIMM}/legacy_se_resnext101_32x4d-37725eac.pth", f"{_CADENE}/se_resnext101_32x4d-3b2fe3d8.pth",
        ),
    ),
    "seresnext50_32x4d": Architecture(
        blocks=(3, 4, 6, 3), stem_pool="padded", top1=82.196, top5=96.148, image_size=288, crop_pct=0.95,
        weights_urls=(f"{_TIMM}/seresnext50_32x4d_racm-a304a460.pth",),
    ),
    "seresnext101_32x4d": Architecture(
        blocks=(3, 4, 23, 3), stem_pool="padded", top1=80.892, top5=95.296,
        weights_urls=(f"{_GLUON}/gluon_seresnext101_32x4d-cf52900d.pth",),
    ),
}
# fmt: on

SHORT_NAMES = {
    name.removeprefix("legacy_").removesuffix("_32x4d"): name for name in MODELS if name.startswith("legacy_")
}


def canonical_name(name: str) -> str:
    """Return the name in `MODELS` for a name or a short name. Raise UsageError for an unknown name."""
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
    """Return an untrained network in training mode: images N in_channels H W to logits N num_classes.

    torch's default generator draws the weights. Raise UsageError for an unknown name or impossible sizes.
    """
    row = MODELS[canonical_name(name)]
    if num_classes < 0 or in_channels < 1 or not (0 <= drop_rate < 1 and 0 <= drop_path_rate < 1):
        raise UsageError(
            f"{name} cannot be made with num_classes={num_classes}, in_channels={in_channels}, drop_rate={drop_rate}, "
            f"drop_path_rate={drop_path_rate}: num_classes must be at least 0 (0: no classifier), in_channels at least "
            "1, both rates from 0 to below 1"
        )
    return SENet(row.blocks, num_classes, in_channels, drop_rate, zero_init_last, drop_path_rate, row.stem_pool)


def build_model(section: ModelSection) -> SENet:
    """Return the untrained model of a recipe. torch's default generator draws the weights."""
    options = ("num_classes", "in_channels", "drop_rate", "zero_init_last", "drop_path_rate")
    return create_model(section.name, **{option: getattr(section, option) for option in options})
