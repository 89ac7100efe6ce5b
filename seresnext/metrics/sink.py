"""The interface of a sink. A sink is a file or a service that gets the events of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Event = Mapping[str, Any]


class Sink(Protocol):
    """A destination of events.

    A sink never ends a run: the first failure is reported with `RunStart.warn`, and training continues.
    """

    def write(self, event: Event) -> None:
        """Write an event: `{"event": "train", "step": ..., "epoch": ..., "loss": ..., ...}`."""

    def close(self) -> None:
        """Release files and connections. Every event is already written."""


@dataclass(frozen=True)
class RunStart:
    """The state of a run in which sinks are opened.

    step: completed steps; 0 for a new run.
    evaluated: step of the last validation; 0 for none.
    logged: step of the last `train` event; 0 for none.
    warn: prints a warning.
    """

    folder: Path
    step: int
    evaluated: int
    logged: int
    warn: Callable[[str], None]
