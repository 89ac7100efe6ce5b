"""SE-ResNeXt: the networks, their table, their published weights."""

from seresnext.models.locate import find_weights
from seresnext.models.pretrained import (
    Preprocessing,
    load_pretrained,
    load_weights,
    published_preprocessing,
    recognise,
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
    "load_pretrained",
    "load_weights",
    "published_preprocessing",
    "recognise",
]
