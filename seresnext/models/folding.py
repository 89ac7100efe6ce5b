"""BatchNorm folded into the convolutions in front, for evaluation: fewer operations, the same logits up to rounding."""

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from seresnext.errors import CheckpointError
from seresnext.models.registry import create_model
from seresnext.models.senet import SENet
from seresnext.printable import printable


def fold_batchnorm(model: SENet) -> SENet:
    """Return a copy of the model in evaluation mode: each convolution has the scale and shift of its BatchNorm.

    The modules keep their names, and an identity replaces each BatchNorm. The model must not be trained afterwards.
    """
    folded = copy.deepcopy(model).eval()
    for parent in list(folded.modules()):
        for (name, module), (following, norm) in itertools.pairwise(parent.named_children()):
            if isinstance(module, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(module, norm))
                setattr(parent, following, nn.Identity())
    return folded


def build_folded(name: str, num_classes: int, tensors: Mapping[str, Tensor], source: str) -> SENet:
    """Return the folded model of a state dict, in evaluation mode. Raise CheckpointError unless the tensors fit."""
    with torch.device("meta"):
        model = fold_batchnorm(create_model(name, num_classes))
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = printable(error, longest=500)
        raise CheckpointError(f"{source} is no folded {name}: {reason}; export the model again") from None
    return model.requires_grad_(False)
