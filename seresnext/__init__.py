"""Training, validation and use of SE-ResNeXt (squeeze-and-excitation ResNeXt) image classifiers.

The Python interface, imported when first used:

>>> import seresnext, torch
>>> model = seresnext.create_model("seresnext50", num_classes=10).eval()
>>> sum(parameter.numel() for parameter in model.parameters())
25531386
>>> with torch.inference_mode():
...     model(torch.zeros(1, 3, 64, 64)).shape  # N classes
torch.Size([1, 10])

`load_pretrained` opens a checkpoint or a published file of weights, `ResizeCenterCrop` prepares an image for the model:

>>> model, how = seresnext.load_pretrained("best.safetensors")  # doctest: +SKIP
>>> crop = seresnext.ResizeCenterCrop(how.image_size, how.crop_pct, how.interpolation)  # doctest: +SKIP

`load_recipe` reads a recipe with its bases and with changes:

>>> loaded = seresnext.load_recipe("seresnext50", ["optimizer.lr=0.3"])
>>> loaded.recipe.optimizer.lr, loaded.recipe.model.name
(0.3, 'seresnext50')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seresnext.data.augment.crop import ResizeCenterCrop
    from seresnext.models import MODELS, Preprocessing, SENet, create_model, load_pretrained, load_weights
    from seresnext.recipe import LoadedRecipe, Recipe, load_recipe

__version__ = "0.2.0"

_MODULES = {
    "MODELS": "seresnext.models",
    "LoadedRecipe": "seresnext.recipe",
    "Preprocessing": "seresnext.models",
    "Recipe": "seresnext.recipe",
    "ResizeCenterCrop": "seresnext.data.augment.crop",
    "SENet": "seresnext.models",
    "create_model": "seresnext.models",
    "load_pretrained": "seresnext.models",
    "load_recipe": "seresnext.recipe",
    "load_weights": "seresnext.models",
}

__all__ = [
    "MODELS",
    "LoadedRecipe",
    "Preprocessing",
    "Recipe",
    "ResizeCenterCrop",
    "SENet",
    "create_model",
    "load_pretrained",
    "load_recipe",
    "load_weights",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import seresnext` imports no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
