"""Open the data of a run, and report every problem that prevents the start in one error, with the fixes.

The problems: a missing split, other classes, too few images for a step, bad images, a missing file of weights.
"""

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from seresnext.data.decode.pillow import Decoding
from seresnext.data.formats import open_reader
from seresnext.data.readers import Reader, check_classes, check_same_classes, shown_classes
from seresnext.data.readers.photo_choice import PhotoChoice, photo_choice
from seresnext.data.shards.reader import check_room
from seresnext.data.substitute import ADVICE
from seresnext.data.survey import Survey, describe, survey
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import DataError, Failure, RecipeError, UsageError, listed, printable
from seresnext.files import open_weights_file
from seresnext.models import PUBLISHED, first_weights
from seresnext.recipe import AUTO_CLASSES, Recipe, check_lengths, check_world, fitting_batch, in_words
from seresnext.recipe.explain import near_miss
from seresnext.run.folder import is_same
from seresnext.run.resume import LoadedCheckpoint

_IMAGES_LISTED = 20


@dataclass(frozen=True)
class StartProblem:
    """A problem that prevents the start of a run: kind of error, message with the fix, settings of the fix."""

    error: type[Failure]
    text: str
    settings: Mapping[str, object] = field(default_factory=dict)


def open_splits(
    recipe: Recipe, checkpoint: LoadedCheckpoint | None, world: World, warn: Callable[[str], None]
) -> tuple[Recipe, Reader, Reader]:
    """Open the training and the validation split. Return the recipe with the number of classes, and the readers.

    Warn about turned and shared images. `checkpoint` is of the run to resume, and None for a fresh start.
    Raises one Failure on all ranks that lists all problems: DataError if any problem concerns the data.
    """
    recipe, readers, problems = find_start_problems(recipe, checkpoint, world, warn)
    with world.agreeing():
        _refuse(problems, "this run")
    return recipe, readers["training"], readers["validation"]


def find_start_problems(
    recipe: Recipe, checkpoint: LoadedCheckpoint | None, world: World, warn: Callable[[str], None], looks: bool = True
) -> tuple[Recipe, dict[str, Reader], list[StartProblem]]:
    """Return the recipe with the number of classes, the readers that can be opened, and all problems.

    The readers are `training` and `validation`. The problems are equal on all ranks. `looks`: also look at a sample of
    the images.
    """
    previous, dataset = (checkpoint.recipe, checkpoint.metadata.dataset) if checkpoint else (None, {})
    readers: dict[str, Reader] = {}
    own: list[StartProblem] = []
    for name, split in (("training", recipe.data.train_split), ("validation", recipe.data.val_split)):
        with _collecting(own):
            readers[name] = open_split(recipe, split, photo_choice(recipe, dataset))
    with _collecting(own):
        check_room(readers.values())
    if recipe.model.num_classes == AUTO_CLASSES:
        found = max([2, *(len(reader.classes) for reader in list(readers.values())[:1])])  # One class is refused later.
        recipe = recipe.changed(model={"num_classes": previous.model.num_classes if previous else found})
    with world.downloading():  # of `model.weights`; another machine may still read photos
        problems = _seen_by_all(own, world)
        if world.is_first:
            world.heartbeat.activity = "the check of the images"
            problems += _compare(recipe, previous, readers, world.size, warn, looks)
        return recipe, readers, world.broadcast(problems)


def check_images(recipe: Recipe, readers: Mapping[str, Reader], world: World, warn: Callable[[str], None]) -> None:
    """Warn about turned images of splits, by name. Raises DataError for images that cannot be used."""
    surveys = _survey(recipe, readers, warn) if world.is_first else {}
    problems = world.broadcast([_unusable(name, result) for name, result in surveys.items() if result.errors])
    with world.agreeing():
        _refuse(problems, "this validation")


@contextmanager
def _collecting(
    problems: list[StartProblem], settings: Mapping[str, object] | None = None, fix: str = ""
) -> Iterator[None]:
    """Add the failure of a block to the problems, with the end of the message and the settings of the fix."""
    try:
        yield
    except Failure as failure:
        texts = failure.problems if isinstance(failure, RecipeError) else [str(failure)]
        found = [StartProblem(type(failure), text + fix, settings or {}) for text in texts]
        problems += [problem for problem in found if problem not in problems]  # A missing root is one problem.


def open_split(recipe: Recipe, split: str, choice: PhotoChoice | None) -> Reader:
    """Return the reader of one split of the data of a recipe. Raises DataError."""
    data = recipe.data
    if data.format == "synthetic":
        assert data.synthetic_images is not None
        return SyntheticReader(data.synthetic_images, recipe.model.num_classes)
    cache = Path(data.cache) if data.cache else None
    return open_reader(data.root, split, data.format, cache, choice)


def _seen_by_all(own: list[StartProblem], world: World) -> list[StartProblem]:
    """Gather the problems of all ranks. A problem that only some ranks have names the first of these ranks."""
    seen = world.gather((socket.gethostname(), own))
    merged: dict[str, StartProblem] = {}
    for rank, (host, problems) in enumerate(seen):
        for problem in problems:
            where = "" if all(problem in others for _, others in seen) else f"rank {rank} on {host}: "
            merged.setdefault(problem.text, replace(problem, text=f"{where}{problem.text}"))
    return list(merged.values())


def _compare(
    recipe: Recipe,
    previous: Recipe | None,
    readers: Mapping[str, Reader],
    world_size: int,
    warn: Callable[[str], None],
    looks: bool,
) -> list[StartProblem]:
    """Return the problems that rank 0 finds in the splits that could be opened."""
    problems: list[StartProblem] = []
    for notice in dict.fromkeys(notice for reader in readers.values() for notice in reader.notices):
        warn(f"warning: {notice}")
    if len(readers) == 2:
        data = recipe.data
        if data.train_split == data.val_split or is_same(
            Path(data.root, data.train_split), Path(data.root, data.val_split)
        ):
            warn(
                f"warning: data.train_split ({data.train_split}) and data.val_split ({data.val_split}) are the same "
                "images, so the validation measures training images; set data.val_split to a split of other images"
            )
        with _collecting(problems):
            check_same_classes(readers["training"], readers["validation"])
    if reader := next(iter(readers.values()), None):
        problems += [*_class_problems(recipe, previous, reader), *_class_weight_problems(recipe, reader)]
    surveys = _survey(recipe, readers, warn) if looks else {}
    if recipe.data.on_error == "substitute":
        surveys.pop("training", None)
    bad = {name: result for name, result in surveys.items() if result.errors}
    if "training" in readers:
        num_bad = len(bad["training"].errors) if "training" in bad else 0
        problems += _batch_problems(recipe, len(readers["training"]), num_bad, world_size)
    problems += [_unusable(name, result, ADVICE if name == "training" else "") for name, result in bad.items()]
    weights = recipe.model.weights
    if weights and previous is None:
        fix = "" if weights == PUBLISHED else "; set model.weights to the path of a file of weights"
        with _collecting(problems, fix=f" (model.weights){fix}"), open_weights_file(first_weights(recipe.model)):
            pass  # `Run` reads the file.
    return problems


def _class_problems(recipe: Recipe, previous: Recipe | None, reader: Reader) -> list[StartProblem]:
    found = len(reader.classes)
    problems: list[StartProblem] = []
    with _collecting(problems, {"model.num_classes": found} if found > 1 else {}):
        check_classes(reader, recipe.model.num_classes, recipe.data.root)
    if problems and previous and found != previous.model.num_classes:
        text = (
            f"{recipe.data.root} has {found} class folders, the run that is resumed has {previous.model.num_classes}; "
            f"put the old class folders back, or start a new run: another --output with --set model.num_classes={found}"
        )
        return [StartProblem(DataError, text)]
    return problems


def _class_weight_problems(recipe: Recipe, reader: Reader) -> list[StartProblem]:
    """Return a problem if `loss.class_weights` names classes that the data lack."""
    given, root = recipe.loss.class_weights, recipe.data.root
    unknown = sorted(set(given) - set(reader.classes)) if isinstance(given, dict) else []
    if not unknown:
        return []
    close = near_miss(unknown[0], list(reader.classes))
    hint = f" (did you mean {printable(close, 40)}?)" if close else ""
    known = f"{len(reader.classes)} classes: {shown_classes(reader.classes)}"
    text = f"{root} has no class {shown_classes(unknown)}{hint}; write names of its {known}"
    return [StartProblem(RecipeError, f"loss.class_weights: {text}")]


def _batch_problems(recipe: Recipe, num_images: int, num_bad: int, world_size: int) -> list[StartProblem]:
    """Return problems of sizes: too few images for a step, processes that do not fit, lengths that do not fit."""
    data, total, usable = recipe.data, recipe.batch.global_size, num_images - num_bad
    problems: list[StartProblem] = []
    sizes = fitting_batch(recipe, world_size, usable) or {}
    with _collecting(problems, sizes):
        if usable < total:
            where = "data.synthetic_images" if data.format == "synthetic" else f"{data.root}, {data.train_split}"
            advice = f"set {in_words(recipe, sizes)}" if sizes else "add images, or start fewer processes"
            raise DataError(
                f"{where}: {usable}{' usable' * bool(num_bad)} training images are fewer than one step takes "
                f"(batch.global_size: {total}); {advice}"
            )
        check_world(recipe, world_size, usable)
    if sizes and (steps := usable // sizes["batch.global_size"]):
        with _collecting(problems):
            check_lengths(recipe, steps)
    return problems


def _survey(recipe: Recipe, readers: Mapping[str, Reader], warn: Callable[[str], None]) -> dict[str, Survey]:
    """Check the images on this machine. A check of the images of a server would download every image."""
    local = {name: reader for name, reader in readers.items() if reader.has_local_files}
    surveys = {name: survey(reader, Decoding.of(recipe.data)) for name, reader in local.items()}
    if warning := describe(surveys, local):
        warn(f"warning: {warning}")
    return surveys


def _unusable(name: str, result: Survey, advice: str = "") -> StartProblem:
    """Return the problem of a split with bad images, with the message of each image."""
    count = len(result.errors)
    lines = listed(result.errors, _IMAGES_LISTED)
    if count == 1:
        return StartProblem(DataError, f"{lines[0]}, {advice}" if advice else lines[0])
    checked = f" checked (of {result.total:,})" if result.seen < result.total else ""
    repair = f"; repair each image, {advice}" if advice else ""
    heading = f"{count} of {result.seen:,} {name} images{checked} cannot be used{repair}:"
    return StartProblem(DataError, "\n  ".join([heading, *lines]))


def _refuse(problems: list[StartProblem], name: str) -> None:
    """Raise one Failure for all problems, if there are any."""
    if not problems:
        return
    kinds = [problem.error for problem in problems]
    if all(kind is RecipeError for kind in kinds):
        raise RecipeError([problem.text for problem in problems])
    if len(problems) == 1:
        raise kinds[0](problems[0].text)
    lines = [problem.text.replace("\n", "\n  ") for problem in problems]
    settings = {key: value for problem in problems for key, value in problem.settings.items()}
    if settings:
        words = " ".join(f"--set {key}={value}" for key, value in settings.items())
        lines.append(f"all settings of these fixes together: {words}")
    # One problem of the data is enough for the exit code of DataError.
    error = next((each for each in (DataError, UsageError) if any(issubclass(kind, each) for kind in kinds)), kinds[0])
    raise error("\n  ".join([f"{name} cannot start, for {len(problems)} reasons:", *lines]))
