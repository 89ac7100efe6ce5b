"""Training, validation and use of SE-ResNeXt (squeeze-and-excitation ResNeXt) image classifiers.

The Python interface, imported when first used:

>>> import seresnext, torch
>>> model = seresnext.create_model("seresnext50", num_classes=10).eval()
>>> sum(parameter.numel() for parameter in model.parameters())
25531386
>>> with torch.inference_mode():
...     model(torch.zeros(1, 3, 64, 64)).shape  # N classes
torch.Size([1, 10])

`load` opens a run, a file of weights or a model by name. The classifier takes paths, PIL images, arrays and tensors:

>>> classifier = seresnext.load("runs/first").to("cuda")  # doctest: +SKIP
>>> classifier.predict(["cat.jpg", "dog.jpg"], top=3)  # doctest: +SKIP

The parts of a classifier are the model, the classes and the preprocessing of the images:

>>> preprocessing = seresnext.Preprocessing(64, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
>>> classifier = seresnext.Classifier(model, list("abcdefghij"), preprocessing)
>>> image = torch.zeros(3, 120, 100)  # 3 H W, in 0..1
>>> [name in classifier.classes for name, probability in classifier.predict(image, top=2)]
[True, True]
>>> classifier.features([image, image], stage="layer3").shape  # N C
torch.Size([2, 1024])

`load_recipe` reads a recipe with its bases and with changes:

>>> loaded = seresnext.load_recipe("seresnext50", ["optimizer.lr=0.3"])
>>> loaded.recipe.optimizer.lr, loaded.recipe.model.name
(0.3, 'seresnext50')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seresnext.classifier import Classifier, load
    from seresnext.data.augment.crop import ResizeCenterCrop
    from seresnext.models import MODELS, Preprocessing, SENet, create_model, load_pretrained, load_weights
    from seresnext.recipe import LoadedRecipe, Recipe, load_recipe

__version__ = "0.2.0"

_NAMES = {
    "classifier": ("Classifier", "load"),
    "data.augment.crop": ("ResizeCenterCrop",),
    "models": ("MODELS", "Preprocessing", "SENet", "create_model", "load_pretrained", "load_weights"),
    "recipe": ("LoadedRecipe", "Recipe", "load_recipe"),
}

__all__ = [
    "MODELS", "Classifier", "LoadedRecipe", "Preprocessing", "Recipe", "ResizeCenterCrop", "SENet", "create_model",
    "load", "load_pretrained", "load_recipe", "load_weights",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import seresnext` imports no torch."""
    for module, names in _NAMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"seresnext.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
