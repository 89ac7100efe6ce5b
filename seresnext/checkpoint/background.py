"""A thread beside training, for one piece of work at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Background:
    """Runs actions in a thread, one after the other. What goes wrong in it is raised by `wait`, where the caller is.

    Each action has a thread of its own, so that between them the process has none that a fork would have to mind. It
    is no daemon: a process that ends waits for it.
    """

    def __init__(self) -> None:
        self._running: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the last action is over and went wrong. Does not wait."""
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def start(self, action: Callable[[], None]) -> None:
        """Begin an action. `wait` for the one before must have come first."""
        assert self._running is None
        self._running = running = Future()

        def run() -> None:
            try:
                action()
            except BaseException as error:
                running.set_exception(error)
            else:
                running.set_result(None)

        threading.Thread(target=run, name="checkpoint").start()

    def wait(self) -> None:
        """Wait until the action is over, if there is one. Raises what it raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
