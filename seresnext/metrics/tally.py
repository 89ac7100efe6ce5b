"""Sums and counts that stay on the device; the host looks once per log line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Tally:
    """Running means of named quantities.

    Sums are float64: a float32 loss summed over a window of steps keeps all its digits, and whole numbers (correct
    predictions) stay exact up to 2**53.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        self._totals = torch.zeros(len(names), 2, dtype=torch.float64, device=device)  # sum, count

    def add(self, count: int, **sums: Tensor | float) -> None:
        """Add sums over `count` items: `add(32, loss=loss_sum)` for images, `add(1, grad_norm=norm)` for steps.

        A tensor (of one element, on the tally's device) is added there without waiting for it.
        """
        for name, value in sums.items():
            row = self._totals[self._rows[name]]
            row[0] += value.detach() if isinstance(value, Tensor) else value
            row[1] += count

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means since the last read, and start anew. This is where the host waits for the device.

        `reduce` sums a tensor over all ranks (the world's sum); every rank must then read, and gets the same means.
        A name with nothing added is left out.
        """
        totals = self._totals.clone()
        self._totals.zero_()
        if reduce is not None:
            totals = reduce(totals)
        means = zip(self._rows, totals.tolist(), strict=True)
        return {name: total / count for name, (total, count) in means if count}
