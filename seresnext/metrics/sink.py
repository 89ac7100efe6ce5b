"""The interface of a sink. A sink is a file or a service that gets the events of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from seresnext.recipe.reader import write_value

Event = Mapping[str, Any]

FIRST_BATCH = "first_batch.png"  # the picture of the first training images in a run folder

_CHARTED = ("train", "validate", "epoch")
_SPEED = ("images_per_second", "seconds_per_step", "data_wait", "gpu_memory_gb", "gpu_utilisation")
_NO_CHART = {"step", "epoch", "total_steps", "num_images"}


class Sink(Protocol):
    """A destination of events, and the base of those that hold nothing open.

    A sink never ends a run: the first failure is reported with `RunStart.report`, and training continues.
    """

    def write(self, event: Event) -> None:
        """Write an event: `{"event": "train", "step": ..., "epoch": ..., "loss": ..., ...}`."""

    def close(self) -> None:
        """Release files and connections. `status.json` has the end of the run."""


@dataclass(frozen=True)
class RunStart:
    """The state of a run in which sinks are opened.

    step: completed steps; 0 for a new run.
    evaluated: step of the last validation; 0 for none.
    logged: step of the last `train` event; 0 for none.
    report: prints a line, such as a warning.
    recipe: the values of the recipe, by section.
    """

    folder: Path
    step: int
    evaluated: int
    logged: int
    report: Callable[[str], None]
    recipe: Mapping[str, Any] = field(default_factory=dict)


def charts(event: Event, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an event by chart: `train/loss`, `train/epoch_top1`, `speed/data_wait`, `validate/loss`.

    Numbers that never change have no chart: the number of images, top-5 accuracy of 5 classes or fewer (100 %), and
    the number of skipped steps while there is none. Events such as a skipped step have no chart.
    """
    kind, weights = event["event"], event.get("weights", "model")
    if kind == "slowest_rank":
        return {"speed/slowest_rank_slower": event["slower"]}
    if kind not in _CHARTED:
        return {}
    name = kind if weights == "model" else f"{kind}_{weights}"
    num_classes = recipe.get("model", {}).get("num_classes") or 1000
    hidden = _NO_CHART | ({"top5"} if num_classes <= 5 else set()) | (set() if event.get("skipped") else {"skipped"})
    found = {}
    for key, value in event.items():
        if key not in hidden and isinstance(value, int | float):
            if key not in _SPEED:
                found[f"train/epoch_{key}" if kind == "epoch" else f"{name}/{key}"] = value
            elif kind == "train":
                found[f"speed/{key}"] = value
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return the values of a recipe by dotted key. Lists and null become text."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float | bool) else write_value(value)
    return flat
