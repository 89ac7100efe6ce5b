"""Trained weights: open a file, find out which model it holds, and load it into a model.

Loading is strict. A file is loaded completely or refused, with all problems in one error. `load_weights` lists the
exceptions.
"""

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from seresnext.checkpoint.contents import STATE_PREFIXES, CheckpointMetadata, select
from seresnext.errors import CheckpointError, UsageError, listed, printable, shown_path
from seresnext.models.locate import find_weights
from seresnext.models.preprocessing import Preprocessing, published_preprocessing
from seresnext.models.registry import MODELS, canonical_name, create_model
from seresnext.models.senet import SENet
from seresnext.models.timm_config import CONFIG, TimmConfig, from_timm_names, preprocessing_of_arguments, read_config
from seresnext.recipe.schema import Recipe
from seresnext.weights import read_weights
from seresnext.weights.names import model_tensors

STEM = "layer0.conv1.weight"
HEAD = ("last_linear.weight", "last_linear.bias")
_EXCITATION = "layer1.0.se_module.fc1.weight"
# The squeeze in the last stage, under this project's names and NVIDIA's, where `layer4` was also `layers.3`:
# PyTorch/Classification/ConvNets/image_classification/models/resnet.py of NVIDIA/DeepLearningExamples.
_LAST_SQUEEZE = re.compile(r"layer(4|s\.3)\.0\.(squeeze\.squeeze|se_module\.fc1|se\.fc1)\.weight")
_MOST_LISTED = 10  # tensors of one kind in a message


class ModelSizes(NamedTuple):
    """The name of a model, the number of classes and the number of input channels."""

    name: str
    num_classes: int
    in_channels: int


@dataclass(frozen=True)
class LoadedWeights:
    """The weights of one model from a file, and the recipe and metadata if the file is a checkpoint of this project.

    `source` is the path, for messages. `weights` says which weights of the checkpoint these are, `model` or `ema`.
    `config` is timm's configuration beside the file. `arguments` are those of another project's training script.
    """

    source: str
    tensors: dict[str, Tensor]
    weights: str = "model"
    recipe: Recipe | None = None
    metadata: CheckpointMetadata | None = None
    config: TimmConfig | None = None
    arguments: Mapping[Any, Any] = field(default_factory=dict)

    def identify(self) -> ModelSizes:
        """Return the model of these weights. Raise CheckpointError if the recipe names another model or other sizes.

        Call this before building a model of the recipe's sizes. The tensors are no larger than the file; the numbers in
        a recipe can be.
        """
        try:
            found = identify_model(self.tensors, self._model_name)
        except CheckpointError as error:
            raise CheckpointError(f"{self.source}: {error}") from None
        if self.recipe is not None:
            section = self.recipe.model
            recorded = ModelSizes(canonical_name(section.name), section.num_classes, section.in_channels)
            fields = zip(("model", "classes", "channels"), recorded, found, strict=True)
            if differences := [f"{field} {one} and {other}" for field, one, other in fields if one != other]:
                raise CheckpointError(
                    f"{self.source} contradicts itself: recipe and tensors have {', '.join(differences)}; "
                    "use another checkpoint"
                )
        if self.config is not None:
            wanted = (self.config.architecture, self.config.num_classes or found.num_classes)
            if wanted != found[:2]:
                raise CheckpointError(
                    f"{self.source} is a {found.name} with {found.num_classes} classes, and {CONFIG} names a "
                    f"{wanted[0]} with {wanted[1]}; use a folder whose files belong together"
                )
        return found

    def load_into(self, model: SENet, reset_head: bool = False) -> list[str]:
        """Load these weights into a model, as `load_weights` does."""
        return load_weights(model, self.tensors, self.source, reset_head, self._model_name)

    @property
    def classes(self) -> list[str] | None:
        """Return the names of the classes, None if the file has none."""
        if self.config is not None:
            return self.config.label_names
        return None if self.metadata is None else self.metadata.dataset["classes"]

    @property
    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of the run, of timm's description, or of the published weights for a bare file."""
        if self.recipe is not None:
            return Preprocessing.of_recipe(self.recipe)
        name, _, in_channels = self.identify()
        if self.config is not None:
            return self.config.steps(in_channels, self.source)
        if self.arguments:
            return preprocessing_of_arguments(self.arguments, name, in_channels, self.source)
        return published_preprocessing(name)

    @property
    def _model_name(self) -> str | None:
        return self.recipe and self.recipe.model.name


def open_weights(path: str | Path, weights: str | None = None) -> LoadedWeights:
    """Return the weights in a file: a published `.pth`, another torch or safetensors file, or a checkpoint of a run.

    `find_weights` lists the other paths. `weights` chooses `model` or `ema` of a checkpoint; by default the recipe
    decides, and for a checkpoint of timm or torchvision the average is taken if there is one. The digest of a
    checkpoint is always checked. Raise CheckpointError for a file that is refused, UsageError for weights that the file
    does not have.
    """
    path = find_weights(path)
    source = shown_path(path)
    no_such_weights = f"--weights {weights}: {source} has no such weights; omit the option, or give another checkpoint"
    tensors, texts, kind, arguments = read_weights(path, weights)
    if not texts:
        if weights == "ema" and kind != "ema":
            raise UsageError(no_such_weights)
        return LoadedWeights(source, tensors, kind, config=read_config(path), arguments=arguments)
    metadata = CheckpointMetadata.from_metadata(texts, source)
    recipe = metadata.read_recipe(source)
    chosen = weights or recipe.evaluation.weights
    if chosen == "auto":
        chosen = "ema" if recipe.ema else "model"
    found = select(tensors, chosen)
    if not found:
        if weights:
            raise UsageError(no_such_weights)
        raise CheckpointError(f"{source} has no {chosen} weights; use another checkpoint of the run")
    if others := [printable(name) for name in tensors if name.partition(".")[0] not in STATE_PREFIXES]:
        raise CheckpointError(
            f"{source} has tensors that no run saves: {', '.join(listed(others, most=5))}; use another checkpoint"
        )
    return LoadedWeights(source, found, chosen, recipe, metadata)


def build_pretrained(loaded: LoadedWeights, num_classes: int | None = None, drop_rate: float = 0.0) -> SENet:
    """Return a model with the loaded weights, in evaluation mode. The options are as in `load_pretrained`."""
    name, file_classes, in_channels = loaded.identify()
    if num_classes is None:
        num_classes = file_classes
    model = create_model(name, num_classes, in_channels, drop_rate)
    loaded.load_into(model, reset_head=num_classes != file_classes)
    return model.eval()


def load_pretrained(
    path: str | Path, num_classes: int | None = None, drop_rate: float = 0.0
) -> tuple[SENet, Preprocessing]:
    """Return the trained model in a file (see `open_weights`), in evaluation mode, and the preprocessing of its images.

    The tensors give the model, the classes and the channels. Another `num_classes` gives a model to fine-tune, whose
    classifier is untrained. Raise CheckpointError.
    """
    loaded = open_weights(path)
    return build_pretrained(loaded, num_classes, drop_rate), loaded.preprocessing


def identify_model(tensors: Mapping[str, Tensor], recorded_name: str | None = None) -> ModelSizes:
    """Return the model, the classes and the channels of weights, from their names and shapes.

    timm's names without `legacy_` mean a padded stem. A checkpoint of this project has the same names for both stems:
    the stem is the stem of `recorded_name`, the model in the recipe. A bare file with these names has timm's `legacy_`
    names, and so the rounded stem.

    Raise CheckpointError unless the tensors are one of `MODELS` with a classifier. `load_weights` checks the rest.
    """
    tensors, stem_pool = _our_names(tensors, "the file", recorded_name)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # A ResNeXt without squeeze-and-excitation, or an SE-ResNet without groups, can have the same number of blocks.
    marks = {"layer1.0.conv2.weight": (128, 4, 3, 3), _EXCITATION: (16, 256, 1, 1)}
    # All lengths are checked: the model is built with these classes and channels before the weights are loaded.
    match shapes.get(STEM), shapes.get(HEAD[0]):
        case (64, channels, 7, 7), (classes, 2048) if channels > 0 and classes > 0 and marks.items() <= shapes.items():
            stages = [{name.split(".")[1] for name in shapes if name.startswith(f"layer{n}.")} for n in (1, 2, 3, 4)]
            for name, row in MODELS.items():
                if (row.blocks, row.stem_pool) == (tuple(map(len, stages)), stem_pool):
                    return ModelSizes(name, classes, channels)
    raise CheckpointError(f"these tensors are the weights of none of {', '.join(MODELS)}; use a file of one of these")


def load_weights(
    model: SENet, tensors: Mapping[str, Tensor], source: str, reset_head: bool = False, recorded_name: str | None = None
) -> list[str]:
    """Copy all tensors into the model, or none. Return notes for the user, one sentence each.

    The names may have prefixes of wrappers, or be timm's. From a checkpoint of this project the EMA weights are taken
    if there are any. `recorded_name` is the model in the recipe (see `identify_model`). `source` is for messages.

    Every tensor must be there and no other, with the right shape and kind, finite, and variances not negative. The stem
    of file and model must pool in the same way. One CheckpointError lists all problems. Two things are allowed:

    - `num_batches_tracked` may be missing, and is then 0: the files of 50 and 101 are older than this tensor.
    - With `reset_head` the classifier of the file, if any, is ignored, and the model keeps its own.
    """
    given, stem_pool = _our_names(tensors, source, recorded_name)
    wanted = model.state_dict()
    notes = []
    if reset_head:
        head = given.get(HEAD[1])
        theirs = "has no classifier" if head is None else f"is loaded without its classifier of {head.numel()} classes"
        notes.append(
            f"{source} {theirs}; the model's own, of {model.num_classes} classes, starts untrained (model.reset_head)"
        )
        given = {name: tensor for name, tensor in given.items() if name not in HEAD}
        wanted = {name: tensor for name, tensor in wanted.items() if name not in HEAD}
    counters = {name: torch.zeros_like(wanted[name]) for name in wanted if name.endswith("num_batches_tracked")}
    given = counters | given
    is_other_stem = _EXCITATION in given and stem_pool != model.stem_pool
    reasons = {name: _unfit(name, given[name], target) for name, target in wanted.items() if name in given}
    problems = [
        [f"another stem: its pooling is {stem_pool}, in the model {model.stem_pool}"] * is_other_stem,
        [f"missing: {name}" for name in wanted if name not in given],
        [f"unexpected: {printable(name)}" for name in given if name not in wanted],
        [f"{name} {reason}" for name, reason in reasons.items() if reason],
    ]
    if any(problems):
        advice = _advice(model, tensors, reset_head, recorded_name) or ["use a file of weights of this model"]
        lines = [line for kind in problems for line in listed(kind, _MOST_LISTED)]
        raise CheckpointError("\n  ".join([f"{source} does not fit the model: {'; '.join(advice)}", *lines]))
    model.load_state_dict({**model.state_dict(), **given})
    return notes


def _our_names(tensors: Mapping[str, Tensor], source: str, recorded_name: str | None) -> tuple[dict[str, Tensor], str]:
    """Return the model's tensors under this project's names, and the pooling of the stem."""
    found = model_tensors(tensors, source)
    if any(tensor.shape[:1] == (16,) for name, tensor in found.items() if _LAST_SQUEEZE.fullmatch(name)):
        raise CheckpointError(
            f"{source} is a network of NVIDIA's DeepLearningExamples: the blocks there squeeze to 16 channels, and the "
            "blocks here to one channel in 16; train the model again, or use published weights"
        )
    if (renamed := from_timm_names(found, source)) is not None:
        return renamed, "padded"
    return found, MODELS[canonical_name(recorded_name)].stem_pool if recorded_name else "ceil"


def _unfit(name: str, tensor: Tensor, target: Tensor) -> str | None:
    if tensor.shape != target.shape:
        return f"has the shape {tuple(tensor.shape)}, in the model {tuple(target.shape)}"
    if tensor.is_floating_point() != target.is_floating_point():
        return f"has the type {tensor.dtype}, in the model {target.dtype}"
    if not tensor.to(target.dtype).isfinite().all():  # 1e300 is finite in float64 and infinite in float32.
        return "has values that are not finite"
    if name.endswith("running_var") and (tensor < 0).any():
        return "has negative variances"
    return None


def _advice(model: SENet, tensors: Mapping[str, Tensor], reset_head: bool, recorded_name: str | None) -> list[str]:
    """Return fixes, if the file is of another model or has other classes."""
    try:
        name, num_classes, _ = identify_model(tensors, recorded_name)
    except CheckpointError:
        return []
    advice = []
    row, blocks = MODELS[name], tuple(len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4))
    if (row.blocks, row.stem_pool) != (blocks, model.stem_pool):
        advice.append(f"the file is of a {name}, set model.name={name}")
    if num_classes != model.num_classes and not reset_head:
        advice.append(
            f"the file has {num_classes} classes and the model {model.num_classes}, set model.reset_head=true to load "
            f"all but the classifier, for fine-tuning, or model.num_classes={num_classes}"
        )
    return advice


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
