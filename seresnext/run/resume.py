"""Where a run starts: from nothing, or from a checkpoint that belongs to the same run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.argument import checkpoint_argument
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.data.readers import look_alikes
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, RecipeError, UsageError
from seresnext.printable import listed, printable
from seresnext.recipe.load import recipe_from_values, to_values
from seresnext.recipe.show import diff
from seresnext.run.folder import as_usage_error, is_same
from seresnext.training.plan import Progress

# Keys that no number of a run depends on: how it is fed, watched and kept. They may change on resume without asking.
FREE_KEYS = frozenset(
    {
        "data.root",
        "data.cache",
        "data.cache_size",
        "data.workers",
        "data.on_error",
        "data.max_bad_images",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.keep_every",
        "checkpoint.on_failure",
        "logging.every",
        "optimizer.stop_after_skips",
        "runtime.loader_timeout",
        "runtime.collective_timeout",
    }
)

# Keys that have an effect on a fresh start only: a resumed run has the weights of the checkpoint.
FIRST_KEYS = ("model.weights", "model.reset_head", "model.zero_init_last")

# Keys that change the result of a validation. Other images in the split change the result, too.
MEASURE_KEYS = frozenset(
    {
        "data.image_size",
        "data.mean",
        "data.std",
        "data.val_split",
        "evaluation.crop_pct",
        "evaluation.interpolation",
        "evaluation.weights",
    }
)

_MOST_LISTED = 50  # changes in one message: a screen

# In the metadata of a file of scripts/average_checkpoints.py: the names of the checkpoints it is the mean of.
AVERAGED = "averaged"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read and verified. `damaged` lists the damaged files that rank 0 skipped."""

    path: Path
    tensors: dict[str, Tensor]
    facts: CheckpointMetadata
    damaged: Sequence[Path] = ()


def find_checkpoint(
    folder: Path, resume: str, world: World, say: Callable[[str], None], restarted: bool = False
) -> LoadedCheckpoint | None:
    """Return the checkpoint to resume from, read by every rank, or None for a fresh start. The folder does not change.

    `resume` is `auto` (the newest valid one of the folder, if any), `never`, or a file. The option is for the first
    start of a launch: a start that torchrun repeats (`restarted`) resumes from the last save of the launch. Raises
    CheckpointError on all ranks when there are checkpoints and none is valid, or when ranks read different files.
    """
    chosen, damaged = world.together(lambda: _choose(folder, resume, restarted, say) if world.is_first else (None, []))
    path: Path | None = world.broadcast(chosen)
    if path is None:
        return None
    tensors, metadata = world.together(lambda: store.read(path))
    digests = world.gather(metadata["digest"])
    world.together(lambda: _check_usable(path, metadata, digests))
    return LoadedCheckpoint(
        path, tensors, world.together(lambda: CheckpointMetadata.from_metadata(metadata, str(path))), damaged
    )


def _check_usable(path: Path, metadata: Mapping[str, str], digests: list[str]) -> None:
    """Raise CheckpointError for weights alone, and for a file that is another one on another rank."""
    if AVERAGED in metadata:
        raise CheckpointError(
            f"{path} is an average of checkpoints, weights alone: a run cannot go on from it; to start a new one from "
            f"these weights, set model.weights={path}"
        )
    if len(set(digests)) > 1:
        raise CheckpointError(f"{path} is not the same file on every rank; is the run folder on a shared file system?")


def _choose(
    folder: Path, resume: str, restarted: bool, say: Callable[[str], None]
) -> tuple[Path | None, Sequence[Path]]:
    """Return the checkpoint to resume from, and the damaged files that were skipped."""
    file = None if resume in ("auto", "never") else checkpoint_argument(resume)
    if resume != "auto" and not restarted:
        return file, []
    try:
        newest = store.newest_valid(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}); make the folder readable") from None
    for warning in newest.warnings:
        say(f"warning: {warning}")
    if file and (newest.path is None or _step(newest.path) < _step(file)):
        return file, []
    return newest.path, newest.damaged


def _step(path: Path) -> int:
    return int(store.verify(path)["step"])


def rewind_folder(
    saved: LoadedCheckpoint, folder: Path, world: World, say: Callable[[str], None], measures_anew: bool = False
) -> dict[str, Any] | None:
    """Make a run folder agree with the checkpoint that the run resumes from. Return the best so far, on every rank.

    Damaged checkpoints are renamed to `.corrupt`, later checkpoints to `.superseded`: the run repeats the later steps.
    If a crash came between a save and the update of `last`, `last` is updated now. A best checkpoint that the folder
    lacks is taken from the folder of the resumed checkpoint. If the file of the best is gone, the best starts over.
    The best also starts over if validation `measures_anew`: other images, or measured in another way. The file of the
    old best then stays under another name.
    """
    return world.broadcast(
        world.together(lambda: _make_newest(saved, folder, say, measures_anew) if world.is_first else None)
    )


def _make_newest(
    saved: LoadedCheckpoint, folder: Path, say: Callable[[str], None], measures_anew: bool
) -> dict[str, Any] | None:
    best, step = saved.facts.best, saved.facts.step
    with as_usage_error(folder.parent):
        if renamed := store.set_aside_damaged(saved.damaged):
            say(f"warning: damaged checkpoints were renamed: {', '.join(path.name for path in renamed)}")
        store.set_aside(folder, beyond=step)
        newest = store.steps(folder).get(step)
        if newest is not None and is_same(newest, saved.path):
            store.point(folder, "last", newest)
        if best is None:
            return None
        places = [store.named(place, best["step"]) for place in (folder, saved.path.parent)]
        candidates = [saved.path, *itertools.chain.from_iterable(places)]
        source = next((path for path in candidates if _is_best(path, best)), None)
        if source is not None:
            store.point(folder, "best", source)
        if measures_anew:
            kept = store.retire_best(folder)
            say(
                f"validation changed: the best so far (top-1 {best['top1']:.2f} % after step {best['step']}) is not "
                f"compared with later validations; the file of the old best is {kept.name if kept else 'gone'}"
            )
            return None
        if source is not None:
            return best
        store.set_aside_best(folder)
    say(
        f"warning: no valid checkpoint is left of the best validation so far (top-1 {best['top1']:.2f} % after step "
        f"{best['step']}); the best is chosen anew from now on"
    )
    return None


def _is_best(path: Path, best: dict[str, Any]) -> bool:
    """Whether this file is the run as it was when it was validated best, and valid."""
    try:
        facts = CheckpointMetadata.from_metadata(store.verify(path), str(path))
    except CheckpointError:
        return False
    return facts.step == best["step"] and facts.best == best


def previous_values(saved: CheckpointMetadata) -> dict[str, Any]:
    """The values of a saved recipe; empty if it is no recipe that this version reads.

    A key that has come into recipes since has its default, which stands for what a recipe without it always meant.
    """
    try:
        return to_values(recipe_from_values(saved.recipe, "the saved recipe"))
    except RecipeError:
        return {}


def restored_progress(saved: LoadedCheckpoint) -> Progress:
    """What the loop carried from step to step. Raises CheckpointError for what no loop wrote."""
    found = {**saved.facts.progress, "history": saved.facts.history}
    usual = asdict(Progress())
    odd = [name for name, value in found.items() if name not in usual or not _is_alike(value, usual[name])]
    odd += sorted(usual.keys() - found.keys())
    best = found.get("best")
    if best is not None and not (
        isinstance(best, dict)
        and isinstance(best.get("top1"), int | float)
        and (type(best.get("step")), type(best.get("weights"))) == (int, str)
    ):
        odd.append("best")
    # These stand in the file twice.
    odd += [name for name in ("step", "best") if name in found and found[name] != getattr(saved.facts, name)]
    if odd or not all(isinstance(event, dict) for event in saved.facts.history):
        raise CheckpointError(f"{saved.path} has progress in it that no run writes: {printable(odd)}")
    return Progress(**found)


def _is_alike(value: Any, usual: Any) -> bool:
    return usual is None or type(value) is type(usual)


def keep_first_settings(
    values: dict[str, Any], settled: Mapping[str, Any], allowed: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a resumed run with the old values of FIRST_KEYS, and a notice for each old value kept.

    A key that is not `allowed` to change gets the new value, which `check_compatible` refuses.
    """
    notices = []
    for key in FIRST_KEYS if settled else ():
        section, _, name = key.partition(".")
        old, new = settled[section][name], values[section][name]
        if old != new and _is_allowed(key, allowed):
            values = {**values, section: {**values[section], name: old}}
            notices.append(
                f"{key} stays {printable(old)}: the key has an effect on a fresh start only, and this run is resumed; "
                f"{printable(new)} is not used"
            )
    return values, notices


def check_compatible(
    saved: CheckpointMetadata, values: dict[str, Any], dataset: dict[str, Any], allowed: Collection[str], source: Path
) -> list[str]:
    """Compare a checkpoint with the recipe and the data of a start. Returns the changes that are allowed, for a notice.

    `allowed` holds recipe keys, whole sections, `dataset` or `classes`. Raises one error with all differences:
    DataError for changed data, UsageError for a changed recipe alone.
    """
    try:
        changes = diff(previous_values(saved) or saved.recipe, values)
    except (RecursionError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{source} has something in it that is no recipe") from error
    refused = [change for change in changes if not _is_allowed(change.partition(":")[0], allowed)]
    problems, keys = _data_changes(saved.dataset, dataset, allowed, source)
    error = DataError if problems else UsageError
    if refused:
        lines = [printable(line, longest=1000) for line in listed(refused, _MOST_LISTED)]
        problems.insert(0, "\n  ".join([f"the recipe is not the recipe of {source}:", *lines]))
        changed = [printable(change.partition(":")[0]) for change in refused]
        if len(changed) > _MOST_LISTED:  # Permit sections then, since a message has room for a screen.
            changed = sorted({key.partition(".")[0] for key in changed})[:_MOST_LISTED]
        keys = [*changed, *keys]
    if problems:
        listing = "\n".join(problems)
        permission = f"--allow-changed {','.join(dict.fromkeys([*allowed, *keys]))}"
        raise error(
            f"this start differs from the run to resume:\n{listing}\n"
            f"restore the old values or data, start a new run with --output, or permit the change: {permission}"
        )
    return changes


def _data_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], allowed: Collection[str], source: Path
) -> tuple[list[str], list[str]]:
    """Return the changes of classes and images that are not allowed, and the keys that permit these changes."""
    problems, keys = [], []
    if "classes" not in allowed and old["classes"] != new["classes"]:
        problems.append(_class_changes(old["classes"], new["classes"], source))
        keys.append("classes")
    if "dataset" not in allowed:
        changed = [
            f"{was['num_images']} {split} images then, {now['num_images']} now"
            for split, was, now in (("training", old, new), ("validation", old.get("val") or {}, new.get("val") or {}))
            if _differs(was, now)
        ]
        if changed:
            problems.append(f"the images are not the images of {source}: {'; '.join(changed)}, or other names")
            keys.append("dataset")
    return problems, keys


def validation_changes(saved: CheckpointMetadata, dataset: Mapping[str, Any], changes: Sequence[str]) -> bool:
    """Return whether new validations cannot be compared with the validation that chose the best of a checkpoint."""
    keys = {change.partition(":")[0] for change in changes}
    return _differs(saved.dataset.get("val") or {}, dataset["val"]) or not keys.isdisjoint(MEASURE_KEYS)


def _differs(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a split has changed. A split without a record (empty, from 0.1.0) counts as unchanged."""
    return bool(was and now) and was["fingerprint"] != now["fingerprint"]


def _is_allowed(key: str, allowed: Collection[str]) -> bool:
    return key in FREE_KEYS or any(key == name or key.startswith(f"{name}.") for name in allowed)


def _class_changes(old: list[str], new: list[str], source: Path) -> str:
    gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    parts = [f"gone: {', '.join(gone[:10])}"] * bool(gone) + [f"new: {', '.join(added[:10])}"] * bool(added)
    parts = parts or ["the same names in another order"]
    return (
        f"the class folders are not those of {source} ({len(old)} then, {len(new)} now; {'; '.join(parts)})"
        f"{look_alikes(gone, added)}"
    )
