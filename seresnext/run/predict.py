"""Classes and features of images, by a trained or published model.

The checkpoint is a file of this project, which names the classes and the preprocessing, or a published `.pth`. A run
folder stands for the best checkpoint in the folder. The features are the input of the classifier.
"""

from __future__ import annotations

import itertools
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.distributed import choose_device
from seresnext.errors import CheckpointError, DataError, UsageError, for_terminal
from seresnext.models import Preprocessing, SENet, find_weights, load_pretrained
from seresnext.recipe.schema import DataSection
from seresnext.weights import read_metadata
from seresnext.weights.names import printable, shown_path

BATCH_SIZE = 32
MAX_PIXELS = DataSection.model_fields["max_pixels"].default


def load_image(path: Path, preprocessing: Preprocessing, max_pixels: int) -> Tensor:
    """Return a file as the model's input, float32 3 H W. Raises DataError naming the file."""
    transform = ResizeCenterCrop(preprocessing.image_size, preprocessing.crop_pct, preprocessing.interpolation)
    try:
        image = transform.decode_and_crop(path.read_bytes(), str(path), max_pixels)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except DataError as error:  # Here the option sets the limit; its default is the key of the checkpoint's recipe.
        raise DataError(str(error).replace("data.max_pixels", "--max-pixels")) from None
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return ((image / 255 - mean) / std).permute(2, 0, 1)


def recorded_facts(checkpoint: Path) -> CheckpointMetadata | None:
    """Return the metadata of a checkpoint of this project, with the digest checked; None for other files.

    Raises CheckpointError for a checkpoint that is damaged.
    """
    metadata = read_metadata(checkpoint)
    return CheckpointMetadata.from_metadata(metadata, shown_path(checkpoint)) if metadata else None


def presumed_classes(num_classes: int) -> Sequence[str]:
    """ImageNet's names if there are 1000 classes, as in the published files; else numbers."""
    if num_classes == 1000:
        from torchvision.models import ResNet50_Weights  # Here for its names: nothing is downloaded.

        return ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return [f"class {number}" for number in range(num_classes)]


@torch.inference_mode()
def predict(
    model: SENet, preprocessing: Preprocessing, paths: Sequence[Path], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (2048) and probabilities (num_classes) of each image, on the CPU."""
    device = next(model.parameters()).device
    for start in range(0, len(paths), BATCH_SIZE):
        some = paths[start : start + BATCH_SIZE]
        images = torch.stack([load_image(path, preprocessing, max_pixels) for path in some])
        features = model.forward_head(model.forward_features(images.to(device)), pre_logits=True)
        yield from zip(features.cpu(), model.last_linear(features).softmax(1).cpu(), strict=True)


def print_predictions(arguments: Namespace) -> None:
    """Print the classes of each image, and write the features if asked. `arguments` are those of the command."""
    for name, value in (("--top", arguments.top), ("--max-pixels", arguments.max_pixels)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: at least 1")

    checkpoint = find_weights(arguments.checkpoint)
    if checkpoint != arguments.checkpoint:
        print(f"weights of {for_terminal(checkpoint)}", file=sys.stderr)
    facts = recorded_facts(checkpoint)
    recorded = facts and facts.dataset["classes"]
    model, preprocessing = load_pretrained(checkpoint)
    if recorded is not None and len(recorded) != model.num_classes:
        raise CheckpointError(
            f"{shown_path(checkpoint)} names {len(recorded)} classes and the model has {model.num_classes}"
        )
    classes = recorded or presumed_classes(model.num_classes)
    model.to(choose_device(arguments.device))
    recorded_limit = facts.recipe.get("data", {}).get("max_pixels") if facts else None
    max_pixels = arguments.max_pixels or recorded_limit or MAX_PIXELS
    kept = []
    for path, (features, probabilities) in zip(
        arguments.images, predict(model, preprocessing, arguments.images, max_pixels), strict=True
    ):
        print(shown_path(path))
        for probability, label in itertools.islice(
            zip(*probabilities.sort(descending=True), strict=True), arguments.top
        ):
            print(f"  {100 * probability.item():6.2f} %  {printable(classes[int(label)])}")
        kept.append(features.numpy())
    if arguments.features:
        try:
            with arguments.features.open("wb") as file:  # np.save would add an ending to a name without one.
                np.save(file, np.stack(kept))
        except OSError as error:
            raise UsageError(f"{arguments.features} cannot be written: {error.strerror}") from None
        print(f"features: {shown_path(arguments.features)}, {len(kept)} x {len(kept[0])}")
