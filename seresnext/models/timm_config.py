"""Models as timm describes them: `config.json` next to the weights, arguments in a checkpoint, names of parameters.

A description may come from a stranger. timm's reader of the file is `load_model_config_from_path` in
https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_hub.py. The names of parameters are in
timm/models/resnet.py. timm's `legacy_` networks, whose stem rounds its size up, have this project's names in timm, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator
from torch import Tensor

from seresnext.errors import CheckpointError, listed, printable, shown_path
from seresnext.files import open_weights_file
from seresnext.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, published_preprocessing
from seresnext.models.registry import MODELS
from seresnext.models.senet import SENet
from seresnext.recipe.schema import Color

CONFIG = "config.json"
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MOST_BYTES = 16 << 20  # the names of ImageNet-21k take 1 MB
# Arguments of timm's models that do not change the network in evaluation.
_HARMLESS = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate"}

Size = Annotated[int, Field(ge=1, le=16_384)]
Sizes = tuple[Size, Size, Size]
Share = Annotated[float, Field(gt=0.01, le=1)]
Channels = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=64)]
Scales = Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Field(min_length=1, max_length=64)]


class PretrainedConfig(BaseModel, frozen=True):
    """The preprocessing. Keys and defaults are timm's (`PretrainedCfg`).

    `test_input_size` and `test_crop_pct` are the sizes of timm's validate.py, and come first.
    """

    input_size: Sizes = (3, 224, 224)
    test_input_size: Sizes | None = None
    crop_pct: Share = 0.875
    test_crop_pct: Share | None = None
    crop_mode: Literal["center"] = "center"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: Channels = IMAGENET_MEAN
    std: Scales = IMAGENET_STD

    def preprocessing(self, in_channels: int, source: str) -> Preprocessing:
        """Return the steps from an image to the input of a network. Raise CheckpointError."""
        _, height, width = self.test_input_size or self.input_size
        if height != width:
            raise CheckpointError(f"{source} has images of {height}x{width}; give a model for square images")
        # timm takes one value for all channels.
        mean, std = (values * in_channels if len(values) == 1 else values for values in (self.mean, self.std))
        if not len(mean) == len(std) == in_channels:
            raise CheckpointError(f"{source} has {len(mean)} means for {in_channels} channels; correct mean and std")
        return Preprocessing(height, self.test_crop_pct or self.crop_pct, self.interpolation, mean, std)


class TimmConfig(BaseModel, frozen=True):
    """The content of `config.json`. Keys without a meaning here are ignored.

    `exif_rotation` and `background` are keys of this project. timm turns no images, and fills no transparent pixels.
    """

    architecture: str
    num_classes: int | None = None
    label_names: list[str] | None = None
    global_pool: Literal["avg"] = "avg"
    model_args: dict[str, Any] = {}
    pretrained_cfg: PretrainedConfig
    exif_rotation: bool | None = None
    background: Color | None = None

    def steps(self, in_channels: int, source: str) -> Preprocessing:
        """Return the steps from an image to the input of a network. Raise CheckpointError."""
        found = self.pretrained_cfg.preprocessing(in_channels, source)
        return replace(found, exif_rotation=bool(self.exif_rotation), background=self.background)

    @model_validator(mode="after")
    def _agree(self) -> TimmConfig:
        if self.architecture not in MODELS:
            raise ValueError(f"the architecture {printable(self.architecture)} is none of {', '.join(MODELS)}")
        if others := [printable(name) for name in self.model_args if name not in _HARMLESS]:
            raise ValueError(f"model_args changes the network: {', '.join(listed(others, most=5))}")
        if self.label_names is not None and self.num_classes not in (None, len(self.label_names)):
            raise ValueError(f"there are {len(self.label_names)} label_names for {self.num_classes} classes")
        return self


def read_config(weights: Path) -> TimmConfig | None:
    """Return the configuration beside a file of weights, None if there is none. Raise CheckpointError."""
    path = weights.with_name(CONFIG)
    if weights.name not in HUB_WEIGHTS or not path.is_file():
        return None
    with open_weights_file(path) as file:
        data = file.read(_MOST_BYTES)  # Longer JSON would be cut, and so refused.
    try:
        return TimmConfig.model_validate_json(data)
    except ValidationError as error:
        raise CheckpointError(f"{shown_path(path)} is refused: {first_problem(error)}; give a folder of timm") from None


def preprocessing_of_arguments(arguments: Mapping[Any, Any], name: str, in_channels: int, source: str) -> Preprocessing:
    """Return the preprocessing by the arguments of timm's train.py or of torchvision's, else the published one.

    timm's names are img_size and crop_pct, torchvision's val_crop_size and val_resize_size. Raise CheckpointError.
    """
    how = published_preprocessing(name)
    known = {key: value for key, value in arguments.items() if value not in (None, "")}
    given = {key: known[key] for key in PretrainedConfig.model_fields if key in known}
    size, resize = known.get("img_size", known.get("val_crop_size")), known.get("val_resize_size")
    if size is not None and "input_size" not in given:
        given["input_size"] = (in_channels, size, size)
    if isinstance(size, int) and isinstance(resize, int) and size > 0 and resize > 0:
        given["crop_pct"] = Fraction(size, resize)  # The quotient can be too large for a float.
    published = {
        "input_size": (in_channels, how.image_size, how.image_size),
        "crop_pct": how.crop_pct,
        "interpolation": how.interpolation,
    }
    try:
        return PretrainedConfig.model_validate({**published, **given}).preprocessing(in_channels, source)
    except ValidationError as error:
        raise CheckpointError(f"{source} has refused arguments: {first_problem(error)}; save the state dict") from None


def first_problem(error: ValidationError) -> str:
    """Return the first problem of values that pydantic refuses, with its place, on one line."""
    first = error.errors()[0]
    return printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "), longest=500)


T = TypeVar("T")


def from_timm_names(tensors: Mapping[str, T], source: str) -> dict[str, T] | None:
    """Return tensors of a network of timm without `legacy_` under this project's names; None for other tensors.

    Raise CheckpointError if two tensors get one name.
    """
    if not any(".se." in name for name in tensors):
        return None
    renamed = {_our_name(name): name for name in tensors}
    if len(renamed) < len(tensors):
        raise CheckpointError(f"{source} has tensors under the names of two models; use a file of one model")
    return {name: tensors[timms] for name, timms in renamed.items()}


def timm_state_dict(model: SENet) -> dict[str, Tensor]:
    """Return the state dict of a model under timm's names, for `load_state_dict` of timm's model of the same name.

    Use these names for a bare file of weights. A bare file with this project's names counts as a `legacy_` model.
    """
    if model.stem_pool == "ceil":
        return dict(model.state_dict())
    return {
        name.removeprefix("layer0.").replace(".se_module.", ".se.").replace("last_linear.", "fc."): tensor
        for name, tensor in model.state_dict().items()
    }


def _our_name(name: str) -> str:
    if name.startswith(("conv1.", "bn1.")):
        return f"layer0.{name}"
    return re.sub(r"^fc\.", "last_linear.", name).replace(".se.", ".se_module.")
