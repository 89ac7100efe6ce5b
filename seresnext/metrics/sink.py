"""The interface of a sink. A sink is a file or a service that gets the events of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Event = Mapping[str, Any]

FIRST_BATCH = "first_batch.png"
"""The picture of the first training images in a run folder."""

_CHARTED = ("train", "validate", "epoch")  # Other events, such as a skipped step, are no points of a curve.
# The groups of fields that are not shown in the group of the event, on the dashboards of all sinks.
_GROUPS = {
    "images_per_second": "speed",
    "seconds_per_step": "speed",
    "data_wait": "speed",
    "gpu_memory_gb": "device",
    "gpu_utilisation": "device",
}
# These fields are the places of points, or have the same value in a whole run.
_NO_CHART = frozenset({"step", "epoch", "total_steps", "num_images", "steps"})


class Sink(Protocol):
    """A destination of events.

    A sink never ends a run: the first failure is reported with `RunStart.warn`, and training continues.
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
    warn: prints a warning.
    report: prints a line.
    recipe: the values of the recipe, by section.
    """

    folder: Path
    step: int
    evaluated: int
    logged: int
    warn: Callable[[str], None]
    report: Callable[[str], None] = print
    recipe: Mapping[str, Any] = field(default_factory=dict)


def charts(event: Event, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an event by chart: `train/loss`, `speed/data_wait`, `validate_ema/top1`.

    Numbers that never change have no chart: the number of images, top-5 accuracy of 5 classes or fewer (100 %), and
    the number of skipped steps while there is none.
    """
    weights = event.get("weights", "model")
    name = event["event"] if weights == "model" else f"{event['event']}_{weights}"
    num_classes = recipe.get("model", {}).get("num_classes") or 1000
    hidden = _NO_CHART | ({"top5"} if num_classes <= 5 else set()) | (set() if event.get("skipped") else {"skipped"})
    found = {}
    for key, value in event.items() if event["event"] in _CHARTED else ():
        if key not in hidden and isinstance(value, int | float) and not isinstance(value, bool):
            group = _GROUPS.get(key, name)
            found[f"{group}/{key}" if name == "train" or group == name else f"{group}/{name}_{key}"] = value
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return the values of a recipe by dotted key. Lists and null become text."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
