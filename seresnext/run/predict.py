"""Classes and features of images, by a trained or published model.

The file is a checkpoint of this project, which names the classes and the preprocessing, or a published `.pth`. A run
folder stands for the best checkpoint in the folder. The features are the input of the classifier: float32, N 2048.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.distributed import choose_device
from seresnext.errors import CheckpointError, DataError, UsageError
from seresnext.models import Preprocessing, SENet, build_pretrained, open_weights
from seresnext.printable import printable, shown_path
from seresnext.recipe.schema import DataSection

BATCH_SIZE = 32
MAX_PIXELS = DataSection.model_fields["max_pixels"].default


def load_image(path: Path, preprocessing: Preprocessing, max_pixels: int) -> Tensor:
    """Return an image file as the model's input, float32 3 H W. Raise DataError, which names the file."""
    transform = ResizeCenterCrop(preprocessing.image_size, preprocessing.crop_pct, preprocessing.interpolation)
    try:
        image = transform.decode_and_crop(path.read_bytes(), str(path), max_pixels)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except DataError as error:  # Name the option that sets the limit here instead of the key of a recipe.
        raise DataError(str(error).replace("data.max_pixels", "--max-pixels")) from None
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return ((image / 255 - mean) / std).permute(2, 0, 1)


def presumed_classes(num_classes: int) -> Sequence[str]:
    """Return ImageNet's names for 1000 classes, as in the published files, otherwise numbers."""
    if num_classes == 1000:
        from torchvision.models import ResNet50_Weights  # for the names; nothing is downloaded

        return ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return [f"class {number}" for number in range(num_classes)]


@torch.inference_mode()
def predict(
    model: SENet, preprocessing: Preprocessing, paths: Sequence[Path], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (2048) and probabilities (num_classes) of each image, on the CPU."""
    device = next(model.parameters()).device
    for start in range(0, len(paths), BATCH_SIZE):
        some = paths[start : start + BATCH_SIZE]
        images = torch.stack([load_image(path, preprocessing, max_pixels) for path in some])
        features = model.forward_head(model.forward_features(images.to(device)), pre_logits=True)
        yield from zip(features.cpu(), model.last_linear(features).softmax(1).cpu(), strict=True)


def print_predictions(arguments: Namespace) -> None:
    """Print the classes of each image, and write the features if asked. `arguments` come from the command line."""
    for name, value in (("--top", arguments.top), ("--max-pixels", arguments.max_pixels)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} is too small; give at least 1")
    loaded = open_weights(arguments.checkpoint)
    if loaded.source != shown_path(arguments.checkpoint):
        print(f"weights of {loaded.source}", file=sys.stderr)
    model = build_pretrained(loaded)
    classes = loaded.classes or presumed_classes(model.num_classes)
    if len(classes) != model.num_classes:
        raise CheckpointError(
            f"{loaded.source} names {len(classes)} classes, the model has {model.num_classes}; use another checkpoint"
        )
    model.to(choose_device(arguments.device))
    max_pixels = arguments.max_pixels or (loaded.recipe.data.max_pixels if loaded.recipe else MAX_PIXELS)
    predictions = predict(model, loaded.preprocessing, arguments.images, max_pixels)
    written = []
    for path, (features, probabilities) in zip(arguments.images, predictions, strict=True):
        print(shown_path(path))
        values, labels = probabilities.sort(descending=True)
        for probability, label in zip(values[: arguments.top].tolist(), labels.tolist(), strict=False):
            print(f"  {100 * probability:6.2f} %  {printable(classes[label])}")
        written.append(features.numpy())
    if arguments.features:
        try:
            with arguments.features.open("wb") as file:  # np.save would add an ending to a name without one.
                np.save(file, np.stack(written))
        except OSError as error:
            raise UsageError(f"{arguments.features} cannot be written: {error.strerror}") from None
        print(f"features: {shown_path(arguments.features)}, {len(written)} x {len(written[0])}")
