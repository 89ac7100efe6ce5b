"""Trained weights with what they need to mean something: the network, the classes, and how images are prepared.

Loading is strict. A file fits wholly or is refused with everything that is wrong in one error; the exceptions are few,
asked for or announced, and listed at `load_weights`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from seresnext.errors import CheckpointError, RecipeError
from seresnext.models.locate import find_weights
from seresnext.models.registry import MODELS, canonical_name, create_model
from seresnext.models.senet import SENet
from seresnext.recipe.load import recipe_from_values
from seresnext.recipe.schema import ModelSection, Recipe
from seresnext.weights import read_weights
from seresnext.weights.names import listed, model_tensors, printable, shown_path

STEM = "layer0.conv1.weight"
HEAD = ("last_linear.weight", "last_linear.bias")
_MOST_LISTED = 10  # tensors of one kind in a message

# Mean and deviation of ImageNet's training pixels by channel, scaled to 0..1, as all three weights expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: resize so that the shorter side is `image_size / crop_pct` pixels, cut
    the central square of `image_size`, scale to 0..1, subtract `mean` and divide by `std` by channel."""

    image_size: int
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Preprocessing:
        """What a run under this recipe validates with."""
        data, evaluation = recipe.data, recipe.evaluation
        return cls(data.image_size, evaluation.crop_pct, evaluation.interpolation, data.mean, data.std)


def published_preprocessing(name: str) -> Preprocessing:
    """What the published weights of a model were evaluated with (timm's `default_cfgs`). Raises UsageError."""
    interpolation = MODELS[canonical_name(name)].interpolation
    return Preprocessing(224, 0.875, interpolation, IMAGENET_MEAN, IMAGENET_STD)


def load_pretrained(
    path: str | Path, num_classes: int | None = None, in_channels: int | None = None, drop_rate: float = 0.0
) -> tuple[SENet, Preprocessing]:
    """The trained model in a file, in evaluation mode, and how to prepare images for it.

    The file is a published `.pth`, another torch or safetensors file with the state dict of one of `MODELS`, or a
    checkpoint of this project, whose recipe tells between model and EMA, and the preprocessing; for other files it is
    the published one. A run folder means the best checkpoint in the folder. The model, the classes and the channels are
    read from the tensors.

    `num_classes` or `in_channels` other than the file's give a model to fine-tune: its classifier is new, its stem is
    adapted as by `load_weights`. Raises CheckpointError.
    """
    path = find_weights(path)
    source = shown_path(path)
    tensors, metadata = read_weights(path)
    recipe = _recorded_recipe(metadata, source) if metadata else None
    if recipe is not None and recipe.evaluation.weights == "model":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("ema.")}
    try:
        name, file_classes, file_channels = identify_model(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if num_classes is None:
        num_classes = file_classes
    model = create_model(name, num_classes, file_channels if in_channels is None else in_channels, drop_rate)
    load_weights(model, tensors, source, reset_head=num_classes != file_classes)
    return model.eval(), Preprocessing.of_recipe(recipe) if recipe else published_preprocessing(name)


def identify_model(tensors: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """The model that tensors belong to, by their keys and shapes: its name, number of classes and of input channels.

    Tensors may be named as in `load_weights`, which is also the one to say whether all of them are there and fit.
    Raises CheckpointError for anything but one of `MODELS` with its classifier.
    """
    tensors = model_tensors(tensors, "the file")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # A ResNeXt without squeeze-and-excitation, or an SE-ResNet without groups, can have the same number of blocks.
    marks = {"layer1.0.conv2.weight": (128, 4, 3, 3), "layer1.0.se_module.fc1.weight": (16, 256, 1, 1)}
    # Whole, also where one number would do: a model of so many classes or channels is made before its weights come.
    stem, head = shapes.get(STEM, ()), shapes.get(HEAD[0], ())
    if marks.items() <= shapes.items() and _is(stem, (64, None, 7, 7)) and _is(head, (None, 2048)):
        blocks = tuple(_count_blocks(shapes, f"layer{stage}.") for stage in (1, 2, 3, 4))
        for name, architecture in MODELS.items():
            if blocks == architecture.blocks:
                return name, head[0], stem[1]
    message = f"these tensors are the weights of none of {', '.join(MODELS)}"
    if "layer1.0.se.fc1.weight" in shapes:
        message += (
            "; they look like timm's seresnext models without `legacy_`, whose stem pools in another way: "
            "renamed, these weights would load and give wrong results"
        )
    raise CheckpointError(message)


def load_weights(model: SENet, tensors: Mapping[str, Tensor], source: str, reset_head: bool = False) -> list[str]:
    """Copy tensors into the model, all or none; returns what the user should be told, a sentence each.

    Prefixes of wrappers are taken off the names, and of a checkpoint of this project the EMA weights are taken if there
    are any, else the model's. Then every tensor must be there and no other, of the right shape and kind, finite, and
    variances not negative; one CheckpointError lists all that is wrong with `source`. Three things are allowed:

    - `num_batches_tracked` may be absent and is 0 then: the files of 50 and 101 are older than it.
    - With `reset_head` the classifier of the file, if any, is ignored, and the model keeps the one it has.
    - The stem of a file for RGB is adapted to a model with another number of channels: for one channel the filters are
      summed up, which for a grey image is exactly what they give for it as RGB; for `n` channels the three are taken in
      turn and scaled by 3/n to keep the size of the output, a mere starting point. timm's `adapt_input_conv` does this.
    """
    given = model_tensors(tensors, source)
    wanted = model.state_dict()
    notes = []
    if reset_head:
        notes.append(_head_note(model, given, source))
        given = {name: tensor for name, tensor in given.items() if name not in HEAD}
        wanted = {name: tensor for name, tensor in wanted.items() if name not in HEAD}
    if STEM in given and given[STEM].shape == (64, 3, 7, 7) and model.in_channels != 3:
        given[STEM] = _for_channels(given[STEM], model.in_channels)
        how = "added up to one" if model.in_channels == 1 else "repeated in turn"
        notes.append(
            f"{source} is for RGB and the model for {model.in_channels} channels: the filters of the stem are {how}"
        )
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros_like(tensor))

    problems = _problems(given, wanted)
    if problems:
        advice = _advice(model, tensors, reset_head)
        # The first line has the fix, so a few tensors are enough to show the fault.
        kinds = [[line for kind in problems for line in kind]] if advice else problems
        lines = [line for kind in kinds for line in listed(kind, _MOST_LISTED)]
        heading = f"{source} does not fit the model: {'; '.join(advice)}"
        raise CheckpointError("\n  ".join([heading.rstrip(), *lines]))
    model.load_state_dict({**model.state_dict(), **given})
    return notes


def _recorded_recipe(metadata: Mapping[str, str], source: str) -> Recipe:
    """The recipe in the metadata of a checkpoint."""
    try:
        values = json.loads(metadata.get("recipe", ""))
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
        return recipe_from_values(values, source)
    except (ValueError, RecursionError, RecipeError) as error:
        raise CheckpointError(f"{source} has a damaged recipe in it: {printable(error, longest=2000)}") from error


def _is(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the wanted one, with any length but 0 for None."""
    return len(shape) == len(wanted) and all(
        length == other or (other is None and length > 0) for length, other in zip(shape, wanted, strict=True)
    )


def _count_blocks(names: Iterable[str], stage: str) -> int:
    return len({name.removeprefix(stage).partition(".")[0] for name in names if name.startswith(stage)})


def _problems(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[list[str]]:
    """Everything wrong with the given tensors, a list for each kind; empty where nothing is."""
    missing = [f"missing: {name}" for name in wanted if name not in given]
    unexpected = [f"unexpected: {printable(name)}" for name in given if name not in wanted]
    unfit = []
    for name, target in wanted.items():
        if name in given and (reason := _unfit(name, given[name], target)):
            unfit.append(f"{name} {reason}")
    return [kind for kind in (missing, unexpected, unfit) if kind]


def _unfit(name: str, tensor: Tensor, target: Tensor) -> str | None:
    if tensor.shape != target.shape:
        return f"has the shape {tuple(tensor.shape)}, in the model {tuple(target.shape)}"
    if tensor.is_floating_point() != target.is_floating_point():
        return f"has the type {tensor.dtype}, in the model {target.dtype}"
    if not tensor.to(target.dtype).isfinite().all():  # 1e300 in float64 is finite and no number in float32.
        return "has values that are not finite"
    if name.endswith("running_var") and (tensor < 0).any():
        return "has negative variances"
    return None


def _advice(model: SENet, tensors: Mapping[str, Tensor], reset_head: bool) -> list[str]:
    """What the user may have meant, if the file is of another model or of other classes."""
    try:
        name, num_classes, _ = identify_model(tensors)
    except CheckpointError:
        return []
    advice = []
    if MODELS[name].blocks != tuple(len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)):
        advice.append(f"the file is of a {name}, set model.name={name}")
    if num_classes != model.num_classes and not reset_head:
        advice.append(
            f"the file has {num_classes} classes and the model {model.num_classes}, set model.reset_head=true to load "
            f"all but the classifier, for fine-tuning, or model.num_classes={num_classes}"
        )
    return advice


def _head_note(model: SENet, given: Mapping[str, Tensor], source: str) -> str:
    head = given.get(HEAD[1])
    theirs = "has no classifier" if head is None else f"is loaded without its classifier of {head.numel()} classes"
    return f"{source} {theirs}; the model's own, of {model.num_classes} classes, starts untrained (model.reset_head)"


def _for_channels(filters: Tensor, in_channels: int) -> Tensor:
    """Filters 64 3 7 7 for red, green and blue as filters 64 in_channels 7 7."""
    if in_channels == 1:
        return filters.sum(1, keepdim=True)
    return filters[:, [channel % 3 for channel in range(in_channels)]] * (3 / in_channels)


def load_first_weights(model: SENet, section: ModelSection, has_other_labels: Callable[[], bool]) -> list[str]:
    """Load the file of weights that the recipe names, if any; returns what the user should be told.

    `has_other_labels()` returns whether the labels of the data differ from the labels of a file without class names.
    Raises CheckpointError when the file is refused or does not fit.
    """
    if section.weights is None:
        return []
    path = find_weights(section.weights)
    tensors, metadata = read_weights(path)
    notes = load_weights(model, tensors, shown_path(path), section.reset_head)
    if not metadata and not section.reset_head and has_other_labels():
        notes.append(
            f"warning: the classifier of {shown_path(path)} is kept, but the class folders of the data are labelled in "
            "text order; rename the folders to numbers of one width (007), or set model.reset_head=true"
        )
    return notes
