"""`seresnext finetune`: from a folder of photographs to a trained model and a report."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext.arguments import Parser, add_device, add_set, path_argument, text_argument
from seresnext.commands.train import add_resume, check_start
from seresnext.commands.validate import check_report, has_tracker, report_run
from seresnext.errors import CheckpointError, Failure, shown_path
from seresnext.process.packages import LIGHT_PACKAGES, require_packages
from seresnext.process.signals import StopRequest

if TYPE_CHECKING:
    from seresnext.distributed import World
    from seresnext.recipe import Recipe

_MOST_IMAGES_A_STEP, _LEAST_IMAGES_A_STEP, _MOST_IMAGES_A_PASS = 64, 8, 32
_STEPS_AN_EPOCH = 8
_LEAST_STEPS = 300
_EPOCHS = 20
_LEAST_EPOCHS, _MOST_EPOCHS = 5, 60
# Images of a run, at which epochs become fewer than `_EPOCHS`.
_MANY_IMAGES = 400_000
_VALIDATIONS = 20
# A new network needs larger steps than a trained one: the recipes of ImageNet have 0.6 for 1,024 images.
_LR_WITHOUT_WEIGHTS = 10
_WITHOUT_WEIGHTS = ["model.weights=null", "model.reset_head=false", "model.frozen=[]", "model.frozen_until=null"]


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    require_packages(LIGHT_PACKAGES)
    parser.epilog = """The command finds out classes, split, batch and length; `--set` changes any key of the recipe.
The same command again resumes the run. docs/own-images.md has examples, and describes layouts, lists and formats."""
    add = parser.add_argument
    add("photos", type=text_argument, metavar="PHOTOS", help="a folder of images, or a list of images (.csv, .jsonl)")
    add("--output", type=path_argument, metavar="DIR", help="the run folder (default: runs/ and the name of PHOTOS)")
    add("--recipe", default="finetune", type=text_argument, metavar="RECIPE", help="another recipe than `finetune`")
    weights = "the weights to start from: published (default), none, a file, or the folder of a run"
    add("--weights", type=text_argument, metavar="published|none|FILE", help=weights)
    add_set(parser)
    add_resume(parser)
    add_device(parser)


def prepare(options: Namespace, stop: StopRequest) -> Callable[[World], None]:
    """Fine-tune a model on your own photographs, and write a report.

    Checks recipe, data, packages and output, and returns the work of a rank.
    """
    options.output = options.output or Path("runs", Path(options.photos).resolve().stem)
    check_start(_recipe(options), options.resume)
    check_report(options.output / "report", "--output")
    return partial(_finetune, options, stop)


def recorded_run(options: Namespace) -> Path | None:
    """Return the run folder, in which a failure is recorded, if the arguments name the folder."""
    return getattr(options, "output", None)


def _recipe(options: Namespace, found: Sequence[str] = (), fallback: Sequence[str] = ()) -> Recipe:
    """Return the recipe: of the run to resume, or else with the settings that were found. The options win.

    `fallback` wins over all.
    """
    from seresnext.recipe import load_recipe, write_scalar

    earlier, settings = _earlier_recipe(options), [*found, f"data.root={write_scalar(options.photos)}"]
    if options.weights == "none" and not earlier:
        settings += _WITHOUT_WEIGHTS
    elif options.weights and not earlier:
        settings.append(f"model.weights={write_scalar(options.weights)}")
    return load_recipe(earlier or options.recipe, [*settings, *options.set, *fallback]).recipe


def _earlier_recipe(options: Namespace) -> Path | None:
    """Return `recipe.yaml` of the run to resume, if there is a checkpoint: batch and weights then stay."""
    if options.resume == "never":
        return None
    folder = options.output / "checkpoints" if options.resume == "auto" else Path(options.resume).parent
    recipe = folder.parent / "recipe.yaml"
    # os.path.isfile raises nothing.
    return recipe if os.path.isfile(recipe) and any(folder.glob("*.safetensors")) else None  # noqa: PTH113


def _finetune(options: Namespace, stop: StopRequest, world: World) -> None:
    from seresnext.run.train import train

    world.heartbeat.is_stopping = lambda: stop.has_come
    recipe = _recipe(options) if _earlier_recipe(options) else _suited_recipe(options, world)
    if not train(recipe, world, stop, output=options.output, resume=options.resume, allow_changed=()):
        return
    stop.end()  # Ctrl-C ends the report.
    try:
        report_run(options.output, options.output / "report", world, attach=has_tracker(options.output))
    except Failure as failure:
        failure.is_recorded = True  # The run itself is finished.
        raise
    if world.is_first:
        run = shown_path(options.output)
        print(f"next: seresnext predict --checkpoint {run} IMAGES")
        print(f"      seresnext export --checkpoint {run} --to onnx --output MODEL")


def _suited_recipe(options: Namespace, world: World) -> Recipe:
    """Return the recipe of a new run, with settings that suit the number of images and the weights that are there."""
    from seresnext.models.locate import PUBLISHED, first_weights
    from seresnext.recipe import load_recipe
    from seresnext.run.opening import find_start_problems

    problem, model = None, _recipe(options).model
    with world.downloading(), world.agreeing():
        if world.is_first and model.weights == PUBLISHED:
            try:
                first_weights(model)
            except CheckpointError as error:
                problem = str(error)
    problem = world.broadcast(problem)
    fallback = _WITHOUT_WEIGHTS if problem else []
    if problem and world.is_first:
        print(f"WITHOUT PRETRAINED WEIGHTS: {problem}")
    recipe = _recipe(options, fallback=fallback)
    readers = find_start_problems(recipe, None, world, lambda warning: None, looks=False)[1]
    num_images = world.broadcast(len(readers["training"]) if "training" in readers else 0)
    if not num_images:  # The start of the run reports all problems of the data together.
        return recipe
    found = suited_settings(load_recipe(options.recipe).recipe, recipe, num_images, world.size)
    return _recipe(options, found, fallback)


def suited_settings(usual: Recipe, recipe: Recipe, num_images: int, world_size: int) -> list[str]:
    """Return the settings of batch, learning rate, length and intervals for a number of training images.

    An epoch has at least 8 steps as far as possible, a step 8 to 64 images, and a run at least 300 steps or 60 epochs.
    The learning rate is that of the `usual` recipe for the usual batch, linear in the batch (Goyal et al. 2017, section
    2.1), and ten times larger if `recipe` has no trained weights. Batch and length of `recipe` stay if the user has set
    them.
    """
    wanted = min(_MOST_IMAGES_A_STEP, num_images // _STEPS_AN_EPOCH)
    most = int(min(max(wanted / world_size, _LEAST_IMAGES_A_STEP), num_images / world_size))
    own = 1 << max(most.bit_length() - 1, 0)  # the largest power of two that is not above
    size, settings = own * world_size, [f"batch.micro_size={min(own, _MOST_IMAGES_A_PASS)}"]
    if recipe.batch != usual.batch:
        size, settings = recipe.batch.global_size, []
    lr = usual.optimizer.lr * size / usual.batch.global_size * (1 if recipe.model.weights else _LR_WITHOUT_WEIGHTS)
    settings += [f"batch.global_size={size}", f"optimizer.lr={lr:.6g}"]
    if recipe.length != usual.length:
        return settings
    epochs = min(max(_EPOCHS, -(-_LEAST_STEPS * size // num_images)), _MOST_EPOCHS)
    epochs = max(min(epochs, _MANY_IMAGES // num_images), _LEAST_EPOCHS)
    every = max(1, epochs // _VALIDATIONS)
    return [*settings, f"length={epochs}ep", f"evaluation.every={every}ep", f"checkpoint.every={every}ep"]
