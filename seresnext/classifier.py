"""A trained network with the names of its classes and the preparation of its images, for use from Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seresnext.data.decode.pillow import Decoding
from seresnext.data.readers.paths import PathReader
from seresnext.errors import CheckpointError, DataError, UsageError, printable
from seresnext.models import LoadedWeights, Preprocessing, SENet, build_pretrained, open_weights
from seresnext.recipe.schema import DataSection

STAGES = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048, None: 2048}
"""The number of features of each stage; None is the input of the classifier."""
MAX_PIXELS: int = DataSection.model_fields["max_pixels"].default
_BATCH_SIZE = 32

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor


class Prediction(NamedTuple):
    """A class and the probability of the class, in 0..1."""

    name: str
    probability: float


@dataclass(eq=False)
class Classifier:
    """A network from images to class names.

    An image is a path, a PIL image, an array (uint8 H W 3) or a tensor (3 H W: uint8, or float in 0..1). Several images
    are a list of these, or an array or tensor with one more dimension in front. An image file with more than
    `max_pixels` pixels is refused. For a model trained with `data.exif_rotation`, a file is turned as its EXIF asks,
    and a PIL image if it still carries the EXIF; an array must be upright. `source` is the file of the weights.
    """

    model: SENet = field(repr=False)
    classes: Sequence[str] = field(repr=False)
    preprocessing: Preprocessing
    max_pixels: int = MAX_PIXELS
    source: str = "the model"

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return next(self.model.parameters()).device

    @property
    def decoding(self) -> Decoding:
        """Return how image files become pixels."""
        return self.preprocessing.decoding(self.max_pixels)

    def to(self, device: torch.device | str) -> Classifier:
        """Move the model to a device, and return this classifier."""
        self.model.to(device)
        return self

    def predict(self, images: ImageLike | Sequence[ImageLike], top: int = 5) -> Any:
        """Return the `top` predictions of an image, best first, or a list of these for several images.

        Raises DataError for a file that cannot be used, UsageError for another kind of image.
        """
        listed, is_single = _listed(images)
        found = [row for logits, _ in self._batches(listed, None) for row in top_classes(logits, self.classes, top)]
        return found[0] if is_single else found

    def features(self, images: ImageLike | Sequence[ImageLike], stage: str | None = None) -> Tensor:
        """Return the features of an image (C) or of several images (N C), float32 on the CPU.

        The features are the means over the feature map of a stage, `layer1` to `layer4`. By default, the features are
        the input of the classifier, which are the means of `layer4`. Raises errors as `predict` does.
        """
        listed, is_single = _listed(images)
        rows = [features for _, features in self._batches(listed, stage)]
        found = torch.cat(rows) if rows else torch.empty(0, STAGES[stage])
        return found[0] if is_single else found

    def prepare(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Return images as the input of the model, float32 N 3 S S on the device of the model."""
        pixels = [self._pixels(image) for image in _listed(images)[0]]
        return self.preprocessing.normalise(torch.stack(pixels)).to(self.device)

    @torch.no_grad()  # A result of inference_mode could not train a classifier of features.
    def outputs(self, inputs: Tensor, stage: str | None = None) -> tuple[Tensor, Tensor]:
        """Return logits (N K) and features (N C) for prepared images, on the CPU. Set the model to evaluation mode."""
        kept: list[Tensor] = []
        if stage not in STAGES:
            raise UsageError(f"there is no stage {printable(stage)}; give one of {', '.join(filter(None, STAGES))}")
        layer = self.model.get_submodule(stage or "layer4")  # The classifier's input is the mean of layer4, too.
        hook = layer.register_forward_hook(lambda layer, given, maps: kept.append(maps.mean((2, 3))))
        try:
            logits = self.model.eval()(inputs)
        finally:
            hook.remove()
        if logits.shape[1] != len(self.classes):
            raise UsageError(f"the model has {logits.shape[1]} outputs and {len(self.classes)} classes; set `classes`")
        return logits.cpu(), kept[0].cpu()

    def _batches(self, images: Sequence[ImageLike], stage: str | None) -> Iterable[tuple[Tensor, Tensor]]:
        for start in range(0, len(images), _BATCH_SIZE):
            yield self.outputs(self.prepare(images[start : start + _BATCH_SIZE]), stage)

    def _pixels(self, image: ImageLike) -> Tensor:
        """Return the pixels of an image that the model sees, uint8 H W 3."""
        if not isinstance(image, str | Path):
            return self.preprocessing.crop_of(_pil(image))
        data = PathReader([str(image)]).read(0)
        try:
            return self.preprocessing.crop.decode_and_crop(data, str(image), self.decoding)
        except DataError as error:  # The limit is no key of a recipe here.
            raise DataError(str(error).replace("data.max_pixels", "max_pixels")) from None


def load(source: str | Path) -> Classifier:
    """Return the classifier in a file of weights or a run folder, of a published model, or on the Hugging Face Hub.

    A name of `MODELS`, such as `seresnext50`, means the published file, which is downloaded to the cache folder of
    torch.hub. A path of this name comes first. A text that starts with `hf-hub:` means a model of the Hub.
    Raises CheckpointError for a file that is refused or missing, UsageError without the extra that the Hub needs.
    """
    loaded = open_weights(source)
    max_pixels = loaded.recipe.data.max_pixels if loaded.recipe else MAX_PIXELS
    return Classifier(build_pretrained(loaded), class_names(loaded), loaded.preprocessing, max_pixels, loaded.source)


def top_classes(logits: Tensor, classes: Sequence[str], top: int) -> list[list[Prediction]]:
    """Return the classes with the highest of logits (N K), best first. Of equal logits, the lower class is first."""
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    probabilities = logits.double().softmax(1).gather(1, order)
    return [
        [Prediction(classes[int(label)], probability) for label, probability in zip(labels, values, strict=True)]
        for labels, values in zip(order.tolist(), probabilities.tolist(), strict=True)
    ]


def class_names(loaded: LoadedWeights) -> list[str]:
    """Return the name of each output. Without names: ImageNet's for 1000 classes, otherwise numbers.

    Raise CheckpointError if the file names another number of classes, and for a model that is not for RGB images.
    """
    _, count, in_channels = loaded.identify()
    if in_channels != 3:
        raise CheckpointError(f"{loaded.source} is a model for images with {in_channels} channels; use a model for RGB")
    if not loaded.classes and count == 1000:
        from torchvision.models import ResNet50_Weights  # for the names; nothing is downloaded

        return ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    classes = loaded.classes or [f"class {number}" for number in range(count)]
    if len(classes) != count:
        raise CheckpointError(f"{loaded.source} names {len(classes)} classes, the model has {count}; use another file")
    return classes


def _listed(images: ImageLike | Sequence[ImageLike]) -> tuple[Sequence[ImageLike], bool]:
    """Return the images as a list, and whether there is a single one."""
    if isinstance(images, np.ndarray | Tensor):
        is_single = images.ndim < 4
    else:
        is_single = isinstance(images, str | Path | Image.Image)
    return ([images] if is_single else list(images)), is_single  # pyright: ignore[reportReturnType, reportArgumentType]


def _pil(image: object) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    kind = type(image).__name__
    if isinstance(image, Tensor):
        kind = f"tensor {image.dtype} {tuple(image.shape)}"
        if image.ndim == 3 and len(image) == 3 and image.numel():
            pixels = image.detach().cpu()
            if pixels.is_floating_point():
                low, high = pixels.min().item(), pixels.max().item()
                if not (low >= 0 and high <= 1):
                    raise UsageError(f"a tensor of an image has values from {low:g} to {high:g}; give floats in 0..1")
                pixels = (pixels * 255).round().to(torch.uint8)
            if pixels.dtype == torch.uint8:
                return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    elif isinstance(image, np.ndarray):
        kind = f"array {image.dtype} {image.shape}"
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return Image.fromarray(np.ascontiguousarray(image))
    raise UsageError(f"{kind} is no image; give a path, PIL image, array uint8 H W 3, or tensor 3 H W (uint8, 0..1)")
