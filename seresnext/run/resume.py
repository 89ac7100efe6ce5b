"""The start of a run: a fresh start, or a resume from a checkpoint of the same run."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.checkpoint.mirror import Mirror
from seresnext.data.readers import shown_classes
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, UsageError, printable
from seresnext.files import checkpoint_argument
from seresnext.recipe import Recipe, diff, to_values
from seresnext.run.folder import as_usage_error, is_same
from seresnext.training.plan import LATER_FIELDS, Progress, describe_best

# Keys and sections that change no number of a run, only loading, logging and saving. They may change on a resume.
FREE_KEYS = frozenset({
    "data.root", "data.cache", "data.workers", "data.on_error", "data.max_bad_images",
    "data.ignore", "data.class_map", "data.exclude",  # The images are compared.
    "checkpoint.every", "checkpoint.keep", "checkpoint.keep_every", "checkpoint.on_failure", "checkpoint.mirror",
    "logging", "optimizer.stop_after_skips", "runtime.loader_timeout", "runtime.collective_timeout",
})  # fmt: skip

# Keys that change the result of a validation. Other images in the split change the result, too.
MEASURE_KEYS = frozenset({
    "data.background", "data.exif_rotation", "data.image_size", "data.mean", "data.std", "data.val_split",
    "evaluation.crop_pct", "evaluation.interpolation", "evaluation.weights", "evaluation.best_by",
})  # fmt: skip

# The metadata key of a file that `seresnext average` wrote: the names of the averaged checkpoints.
AVERAGED = "averaged"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read and verified, and the recipe of the run.

    A key of `recipe` that is newer than the checkpoint has its default, which stands for the behaviour without the key.
    `damaged` lists the damaged files that rank 0 skipped. `mirror` is the mirror of this start, if any.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: CheckpointMetadata
    recipe: Recipe
    damaged: Sequence[Path] = ()
    mirror: Mirror | None = None


def find_checkpoint(
    folder: Path,
    resume: str,
    world: World,
    report: Callable[[str], None],
    restarted: bool = False,
    mirror: Mirror | None = None,
) -> LoadedCheckpoint | None:
    """Return the checkpoint to resume from, read by every rank, or None for a fresh start. The folder does not change.

    `resume` is `auto` (the newest valid checkpoint of the folder, if any), `never`, or a file. The option counts for
    the first start of a launch: a torchrun restart (`restarted`) resumes from the last save of the launch. A newer
    checkpoint of the mirror is downloaded first. Raises CheckpointError on all ranks if there are checkpoints and none
    is valid, or if ranks read different files.
    """
    with world.downloading(), world.agreeing():
        path, damaged = _choose(folder, resume, restarted, report, mirror) if world.is_first else (None, ())
    path = world.broadcast(path)
    if path is None:
        return None
    with world.agreeing():
        tensors, texts = store.read(path)
    digests = world.gather(texts["digest"])
    with world.agreeing():
        if AVERAGED in texts:
            raise CheckpointError(
                f"{path} is an average of checkpoints, without the state of a training, so no run can resume from the "
                f"file; to start a new run from these weights, set model.weights={path}"
            )
        if len(set(digests)) > 1:
            raise CheckpointError(
                f"{path} is not the same file on every rank; put the run folder on a shared file system"
            )
        metadata = CheckpointMetadata.from_metadata(texts, str(path))
        recipe = metadata.read_recipe(str(path))
    return LoadedCheckpoint(path, tensors, metadata, recipe, damaged, mirror)


def _choose(
    folder: Path, resume: str, restarted: bool, report: Callable[[str], None], mirror: Mirror | None
) -> tuple[Path | None, Sequence[Path]]:
    """Return the checkpoint to resume from, and the damaged files that were skipped."""
    file = None if resume in ("auto", "never") else checkpoint_argument(resume)
    is_auto = resume == "auto" or restarted
    try:
        if mirror:
            mirror.look(starts_over=resume == "never" and not restarted, adopts=is_auto and not store.steps(folder))
        if not is_auto:
            return file, []
        newest = _newest(folder, mirror)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}); make the folder readable") from None
    for warning in newest.warnings:
        report(f"warning: {warning}")
    if file and (newest.path is None or int(store.verify(newest.path)["step"]) < int(store.verify(file)["step"])):
        return file, []
    return newest.path, newest.damaged


def _newest(folder: Path, mirror: Mirror | None) -> store.Newest:
    """Return the newest valid checkpoint of the folder, or of the mirror if the mirror has a newer one."""
    newest, refusal = store.Newest(None, [], []), None
    try:
        newest = store.newest_valid(folder)
    except CheckpointError as error:
        refusal = error
    fetched = mirror and mirror.fetch(folder, beyond=store.step_of(newest.path) if newest.path else -1)
    if refusal and not fetched:
        raise refusal
    return newest._replace(path=fetched or newest.path)


def rewind_folder(
    checkpoint: LoadedCheckpoint,
    folder: Path,
    world: World,
    report: Callable[[str], None],
    validation_changed: bool = False,
) -> dict[str, Any] | None:
    """Make a run folder agree with the checkpoint that the run resumes from. Return the best so far, on every rank.

    Damaged checkpoints are renamed to `.corrupt`, later checkpoints to `.superseded`: the run repeats the later steps.
    If a crash came between a save and the update of `last`, `last` is updated now. A best checkpoint that the folder
    lacks is taken from the folder of the resumed checkpoint, or from the mirror. The best starts over if its file is
    gone, or if the validation changed (other images or another measure). The file of the old best then stays under
    another name.
    """
    with world.downloading(), world.agreeing():
        best = _rewind(checkpoint, folder, report, validation_changed) if world.is_first else None
    return world.broadcast(best)


def _rewind(
    checkpoint: LoadedCheckpoint, folder: Path, report: Callable[[str], None], validation_changed: bool
) -> dict[str, Any] | None:
    best, step = checkpoint.metadata.best, checkpoint.metadata.step
    with as_usage_error(folder.parent):
        if renamed := store.mark_corrupt(checkpoint.damaged):
            report(f"warning: damaged checkpoints were renamed: {', '.join(path.name for path in renamed)}")
        store.mark_superseded(folder, beyond=step)
        newest = store.steps(folder).get(step)
        if newest is not None and is_same(newest, checkpoint.path):
            store.update_link(folder, "last", newest)
        if best is None:
            return None
        files = _best_files(checkpoint, folder, best["step"])
        source = next((path for path in files if _is_best(path, best)), None)
        if source:
            store.update_link(folder, "best", source)
            if not validation_changed:
                return best
        retired = store.retire_best(folder)
    why = "the validation changed" if validation_changed else "no valid checkpoint of the best validation is left"
    kept = f"; {retired.name} is the file of an old best" if retired else ""
    report(
        f"warning: {why}: later validations are not compared with the best so far, {describe_best(best)} after step "
        f"{best['step']}{kept}"
    )
    return None


def _best_files(checkpoint: LoadedCheckpoint, folder: Path, step: int) -> Iterator[Path]:
    """Yield the files that may be the best checkpoint of a run, if the best is of `step`."""
    yield checkpoint.path
    for place in (folder, checkpoint.path.parent):
        yield from filter(Path.is_file, (place / f"step-{step:08d}.safetensors", place / "best.safetensors"))
    if checkpoint.mirror and (fetched := checkpoint.mirror.fetch_step(folder, step)):
        yield fetched


def _is_best(path: Path, best: dict[str, Any]) -> bool:
    """Return whether a file is a valid checkpoint of this best validation."""
    with suppress(CheckpointError):
        metadata = CheckpointMetadata.from_metadata(store.verify(path), str(path))
        return metadata.step == best["step"] and metadata.best == best
    return False


def restored_progress(checkpoint: LoadedCheckpoint) -> Progress:
    """Return the progress in a checkpoint. Raises CheckpointError for values that no run writes."""
    metadata, usual = checkpoint.metadata, asdict(Progress())
    found = {**metadata.progress, "history": metadata.history}
    if not found.keys() & LATER_FIELDS:  # The next means are over the steps from here on.
        found |= {name: usual[name] for name in LATER_FIELDS}
    odd = sorted(found.keys() ^ usual.keys())
    odd += [name for name in usual if name != "best" and name in found and type(found[name]) is not type(usual[name])]
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    odd += [name for name, value in counts.items() if value < 0 or (name == "evaluated" and value > metadata.step)]
    # The file has the step and the best twice.
    odd += [name for name in ("step", "best") if name in found and found[name] != getattr(metadata, name)]
    if metadata.best and not metadata.best.keys() >= {"step", "top1", "weights"}:
        odd.append("best")
    if odd:
        raise CheckpointError(f"{checkpoint.path} has progress values that no run writes: {printable(odd)}")
    return Progress(**found)


def check_compatible(
    checkpoint: LoadedCheckpoint, recipe: Recipe, dataset: dict[str, Any], allowed: Collection[str]
) -> list[str]:
    """Compare a checkpoint with the recipe and the data of a start. Return the changes that are allowed.

    `allowed` holds recipe keys, whole sections, `dataset` or `classes`. Raises one error with all differences:
    DataError for changed data, UsageError for a changed recipe alone.
    """
    source = checkpoint.path
    changes = diff(to_values(checkpoint.recipe), to_values(recipe))
    refused = [change for change in changes if not is_allowed(change.partition(":")[0], allowed)]
    of_data = dict(_data_changes(checkpoint.metadata.dataset, dataset, source))
    problems = [text for key, text in of_data.items() if key not in allowed]
    error = DataError if problems else UsageError
    if refused:
        lines = [printable(change, 1000) for change in refused]
        problems.insert(0, "\n  ".join([f"the recipe is not the recipe of {source}:", *lines]))
    if problems:
        keys = dict.fromkeys([*allowed, *(change.partition(":")[0] for change in refused), *of_data])
        listing = "\n".join(problems)
        raise error(
            f"this start differs from the run to resume:\n{listing}\n"
            "restore the old values or data, start a new run with --output, or permit the change: "
            f"--allow-changed {','.join(keys)}"
        )
    return changes


def _data_changes(old: Mapping[str, Any], new: Mapping[str, Any], source: Path) -> Iterator[tuple[str, str]]:
    """Yield the changes of classes and images, each with the word of `--allow-changed`."""
    if old["classes"] != new["classes"]:
        was, now = set(old["classes"]), set(new["classes"])
        names = {"gone": was - now, "new": now - was}
        parts = [f"{word}: {shown_classes(each)}" for word, each in names.items() if each]
        numbers = f"{len(old['classes'])} then, {len(new['classes'])} now"
        yield (
            "classes",
            (
                f"the class folders are not the class folders of {source} ({numbers}; "
                f"{'; '.join(parts) or 'the same names in another order'})"
            ),
        )
    changed = [
        f"{was['num_images']} {split} images then, {now['num_images']} now"
        for split, was, now in (("training", old, new), ("validation", old.get("val") or {}, new.get("val") or {}))
        if _differs(was, now)
    ]
    if changed:
        yield "dataset", f"the images are not the images of {source}: {'; '.join(changed)}, or other names"


def changes_validation(metadata: CheckpointMetadata, dataset: Mapping[str, Any], changes: Sequence[str]) -> bool:
    """Return whether changes make new validations incomparable with the best validation of a checkpoint."""
    keys = {change.partition(":")[0] for change in changes}
    return _differs(metadata.dataset.get("val") or {}, dataset["val"]) or not keys.isdisjoint(MEASURE_KEYS)


def _differs(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a split has changed. A split without a record (empty, from 0.1.0) counts as unchanged."""
    return bool(was and now) and was["fingerprint"] != now["fingerprint"]


def is_allowed(key: str, allowed: Collection[str]) -> bool:
    """Return whether a key may change on a resume: a key of FREE_KEYS or `allowed`, or of a section in these."""
    return any(key == name or key.startswith(f"{name}.") for name in (*FREE_KEYS, *allowed))
