"""Being asked to stop: Ctrl-C, a scheduler's SIGTERM, or a cluster's SIGUSR1 before it takes the machine away."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that a signal asked this process to stop. The trainer looks at it between steps.

    A handler may run between any two instructions, so it only sets a name; ranks agree on the step to stop at
    elsewhere. After a first Ctrl-C the second one ends the process at once, even inside a collective.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
