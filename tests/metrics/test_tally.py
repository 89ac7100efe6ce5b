"""Sums and counts: exact, one transfer per read, the same over ranks."""

import pytest
import torch

from seresnext.metrics.tally import Tally


def test_means_with_their_own_counts():
    tally = Tally(("loss", "grad_norm", "unused"))
    tally.add(4, loss=torch.tensor(10.0))
    tally.add(2, loss=8.0)
    tally.add(1, grad_norm=torch.tensor(0.5))
    tally.add(1, grad_norm=torch.tensor(1.5))
    assert tally.read() == {"loss": 3.0, "grad_norm": 1.0}
    assert tally.read() == {}


def test_sums_keep_what_float32_loses():
    tally = Tally(("loss",))
    for _ in range(1000):
        tally.add(1, loss=torch.tensor(1 / 3))
    assert tally.read()["loss"] == pytest.approx(float(torch.tensor(1 / 3)), rel=1e-14)
    tally.add(1, loss=torch.tensor(2**24, dtype=torch.int64))
    tally.add(0, loss=torch.tensor(1, dtype=torch.int64))
    assert tally.read()["loss"] == 2**24 + 1


def test_gradients_are_not_held():
    tally = Tally(("loss",))
    loss = torch.ones(3, requires_grad=True).sum()
    tally.add(3, loss=loss)
    assert tally.read() == {"loss": 1.0}


def test_reduce_sums_over_ranks_before_dividing():
    """Two ranks of which one saw more images: the mean is over images, not over ranks."""
    tally = Tally(("loss", "grad_norm"))
    tally.add(1, loss=1.0)
    other_rank = torch.tensor([[9.0, 3.0], [5.0, 1.0]], dtype=torch.float64)
    assert tally.read(lambda totals: totals + other_rank) == {"loss": 2.5, "grad_norm": 5.0}


def test_unknown_name_is_our_bug():
    with pytest.raises(KeyError):
        Tally(("loss",)).add(1, lose=1.0)


def test_nan_stays_visible():
    tally = Tally(("loss",))
    tally.add(1, loss=torch.tensor(float("nan")))
    assert tally.read()["loss"] != tally.read().get("loss", 0.0)


def test_adding_never_waits_for_the_device():
    """On the meta device any look at a value is an error, so adding does not look."""
    tally = Tally(("loss",), device="meta")
    tally.add(3, loss=torch.ones((), device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        tally.read()
