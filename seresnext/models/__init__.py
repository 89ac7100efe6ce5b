"""SE-ResNeXt: the networks, the table of models, and published weights."""

from seresnext.models.locate import PUBLISHED, find_weights, first_weights
from seresnext.models.preprocessing import Preprocessing, published_preprocessing
from seresnext.models.pretrained import LoadedWeights, build_pretrained, load_pretrained, load_weights, open_weights
from seresnext.models.registry import MODELS, build_model, canonical_name, create_model
from seresnext.models.senet import SENet
from seresnext.models.timm_config import CONFIG, TimmConfig, timm_state_dict

__all__ = [
    "CONFIG", "MODELS", "PUBLISHED", "LoadedWeights", "Preprocessing", "SENet", "TimmConfig", "build_model",
    "build_pretrained", "canonical_name", "create_model", "find_weights", "first_weights", "load_pretrained",
    "load_weights", "open_weights", "published_preprocessing", "timm_state_dict",
]  # fmt: skip
