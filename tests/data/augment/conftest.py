"""Draws of fixed uniform numbers, for this project and for torchvision."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor


class Replay:
    """A stream that gives fixed uniform numbers. `taken` counts the numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = iter(values)
        self.taken = 0

    def random(self) -> float:
        self.taken += 1
        return next(self._values)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def randint(self, count: int) -> int:
        return int(self.random() * count)

    def bernoulli(self, probability: float) -> bool:
        return self.random() < probability


@pytest.fixture
def replay() -> type[Replay]:
    """The class Replay."""
    return Replay


@pytest.fixture
def torchvision_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[Replay, Callable[[], Any]], Any]:
    """`torchvision_draws(replay, call)` returns the result of a call of torchvision that draws from the stream."""

    def drawn(stream: Replay, call: Callable[[], Any]) -> Any:
        def uniform_(tensor: Tensor, low: float, high: float) -> Tensor:
            return tensor.double().fill_(stream.uniform(float(low), float(high)))

        def randint(low: int, high: int, size: object) -> Tensor:
            assert low == 0
            return torch.tensor([stream.randint(high)])

        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "uniform_", uniform_)
            patch.setattr(torch, "randint", randint)
            return call()

    return drawn


@pytest.fixture(autouse=True)
def torchs_randomness_is_untouched():
    """No augmentation draws from torch's default generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)
