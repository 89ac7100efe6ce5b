"""The order is uniform sampling: the classes of a batch, and independent epochs.

The controls are NumPy's shuffles, and orders that are known to be bad.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

from seresnext.data.order import Order

IMAGES, CLASSES, BATCH, EPOCHS = 2000, 10, 100, 30
# Sorted by class, as image folders are: the worst case for an order that does not mix.
LABELS = np.arange(IMAGES) * CLASSES // IMAGES


def ours(seed: int) -> list[np.ndarray]:
    order, steps = Order(IMAGES, BATCH, 25, seed), IMAGES // BATCH
    parts = [order.micro_batch(step, r).indices for step in range(EPOCHS * steps) for r in range(4)]
    return list(np.concatenate(parts).reshape(EPOCHS, IMAGES))


def uniform(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(IMAGES) for _ in range(EPOCHS)]


def buffered(seed: int) -> list[np.ndarray]:
    """A usual stream: the next image is drawn from a buffer of the next 500 images."""
    rng, epochs = np.random.default_rng(seed), []
    for _ in range(EPOCHS):
        buffer, epoch = list(range(500)), []
        for following in range(500, IMAGES):
            place = rng.integers(500)
            epoch.append(buffer[place])
            buffer[place] = following
        epochs.append(np.array(epoch + rng.permutation(buffer).tolist()))
    return epochs


def rolled(seed: int, by: int = 37) -> list[np.ndarray]:
    """One shuffle that begins elsewhere in each epoch."""
    once = np.random.default_rng(seed).permutation(IMAGES)
    return [np.roll(once, by * epoch) for epoch in range(EPOCHS)]


BAD = {
    "unshuffled": [np.arange(IMAGES)] * EPOCHS,
    "buffered": buffered(0),
    "shuffled once": rolled(0, by=0),
    "rolled": rolled(0),
}


def class_mix(epochs: list[np.ndarray]) -> float:
    """Chi-square of the classes of each batch against even ones, meaned over batches."""
    expected = BATCH / CLASSES
    batches = np.stack(epochs).reshape(-1, BATCH)
    counts = np.stack([np.bincount(LABELS[batch], minlength=CLASSES) for batch in batches])
    return float(((counts - expected) ** 2 / expected).sum(1).mean())


def correlation(epochs: list[np.ndarray]) -> float:
    """Squared rank correlation of the places of images in two epochs, meaned over pairs and times N - 1: about 1."""
    places = np.stack([np.argsort(epoch) for epoch in epochs])
    rho = np.corrcoef(places)[np.triu_indices(EPOCHS, 1)]
    return float((IMAGES - 1) * (rho**2).mean())


def companions(epochs: list[np.ndarray]) -> float:
    """Return the number of pairs that share a batch in two consecutive epochs, relative to chance."""
    batches = np.stack([np.argsort(epoch) // BATCH for epoch in epochs])
    shared = 0.0
    for one, other in pairwise(batches):
        table = np.bincount(one * (IMAGES // BATCH) + other, minlength=(IMAGES // BATCH) ** 2)
        shared += (table * (table - 1)).sum()
    bernoulli = IMAGES * (BATCH - 1) * (BATCH - 1) / (IMAGES - 1)
    return shared / (EPOCHS - 1) / bernoulli


def neighbours(epochs: list[np.ndarray]) -> float:
    """Return the mean rank correlation of the positions of neighbouring images, in deviations."""
    rho = [np.corrcoef(np.argsort(epoch)[:-1], np.argsort(epoch)[1:])[0, 1] for epoch in epochs]
    return float(np.mean(rho) * math.sqrt(EPOCHS * IMAGES))


MEASURES = {
    "class mix": (class_mix, ["unshuffled", "buffered"]),
    "correlation": (correlation, ["unshuffled", "buffered", "shuffled once"]),
    "companions": (companions, ["unshuffled", "buffered", "shuffled once", "rolled"]),
    "neighbours": (neighbours, ["unshuffled", "buffered"]),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_orders_are_as_uniform_sampling_gives_them(measure: str):
    measured, bad = MEASURES[measure]
    reference = [measured(uniform(seed)) for seed in range(20)]
    mean, deviation = np.mean(reference), np.std(reference, ddof=1)

    def distance(value: float) -> float:
        return float(abs(value - mean) / deviation)

    mine = [distance(measured(ours(seed))) for seed in range(5)]
    assert max(mine) < 5
    assert np.mean(mine) < 2
    for name in bad:
        assert distance(measured(BAD[name])) > 10, name


def test_an_image_may_come_at_any_place():
    """Over epochs and seeds each of few images is as often in each batch."""
    counts = np.zeros((50, 5))
    for seed in range(40):
        order = Order(50, 10, 10, seed)
        for step in range(5 * 20):
            counts[order.micro_batch(step, 0).indices, step % 5] += 1
    expected = 40 * 20 / 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = 49 * 4
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_the_remainder_of_an_epoch_is_uniform():
    left_out = np.zeros(105)
    for seed in range(20):
        order = Order(105, 20, 20, seed)
        for epoch in range(40):
            seen = [order.micro_batch(epoch * 5 + step, 0).indices for step in range(5)]
            left_out[np.setdiff1d(np.arange(105), np.concatenate(seen))] += 1
    expected = 20 * 40 * 5 / 105
    statistic = ((left_out - expected) ** 2 / expected).sum() / (1 - 5 / 105)
    assert abs(statistic - 104) < 4 * math.sqrt(2 * 104)
