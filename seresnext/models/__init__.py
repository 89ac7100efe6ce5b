"""SE-ResNeXt: the networks, their table, their published weights."""

from seresnext.models.locate import find_weights
from seresnext.models.pretrained import (
    Preprocessing,
    identify_model,
    load_pretrained,
    load_weights,
    published_preprocessing,
)
from seresnext.models.registry import MODELS, Architecture, canonical_name, create_model
from seresnext.models.senet import SENet

__all__ = [
    "MODELS",
    "Architecture",
    "Preprocessing",
    "SENet",
    "canonical_name",
    "create_model",
    "find_weights",
    "identify_model",
    "load_pretrained",
    "load_weights",
    "published_preprocessing",
]
