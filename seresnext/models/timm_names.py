"""timm's parameter names for the networks with a padded stem, `seresnext50_32x4d` and so on (timm/models/resnet.py).

The networks whose stem rounds its size up, timm's `legacy_seresnext*`, have this project's names in timm, too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from seresnext.errors import CheckpointError
from seresnext.models.senet import SENet

T = TypeVar("T")


def has_timm_names(names: Iterable[str]) -> bool:
    """Return whether these are names of a network of timm with squeeze-and-excitation and without `legacy_`."""
    return any(".se." in name for name in names)


def from_timm_names(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    """Return the same tensors under this project's names. Raise CheckpointError if two tensors get one name."""
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
