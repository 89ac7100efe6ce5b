"""Durations: `90ep` (epochs) or `2000st` (optimizer steps), and the conversion to steps.

A recipe keeps the unit, since the number of steps in an epoch is known only in a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_PATTERN = re.compile(r"([0-9]{1,20})(ep|st)")


@dataclass(frozen=True)
class Duration:
    """A count of epochs (`ep`) or of optimizer steps (`st`)."""

    count: int
    unit: Literal["ep", "st"]

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Return the duration in a text `<int>ep` or `<int>st`. Raises ValueError with a hint for other texts."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise ValueError(f"{text[:30]!r} is not a duration; write epochs as '90ep' or optimizer steps as '2000st'")
        return cls(int(match[1]), "ep" if match[2] == "ep" else "st")

    def steps(self, steps_per_epoch: int) -> int:
        """Return the duration in optimizer steps."""
        return self.count * steps_per_epoch if self.unit == "ep" else self.count

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"
