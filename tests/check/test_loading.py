"""The loader alone: a reader of known speed is the oracle."""

import time

import numpy as np
import pytest
from encoded_images import encoded, noise

from seresnext.check import devices
from seresnext.check.devices import measure_loader
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import DataError


class Timed(SyntheticReader):
    """Small images, each after a pause."""

    def __init__(self, pause, image=None):
        super().__init__(40, 2)
        self._pause, self._image, self.seen = pause, image or encoded(noise(40, 40)), []

    def read(self, index):
        self.seen.append(index)
        time.sleep(self._pause)
        return self._image


@pytest.mark.parametrize(("pause", "low", "high"), [(0.02, 10, 50), (0.0, 60, 1e6)])
def test_the_rate_is_that_of_the_reader(small, pause, low, high):
    rate = measure_loader(small(), Timed(pause), World())
    assert low < rate.low <= rate.median <= rate.high < high


def test_workers_load_at_the_same_time(small, monkeypatch):
    monkeypatch.setattr(devices, "_WINDOW_SECONDS", 0.3)
    rate = measure_loader(small("data.workers=3"), Timed(0.05), World())
    assert 22 < rate.median < 70  # One process reaches 20 at most.


def test_images_of_shards_come_in_the_order_of_a_run(small):
    """A random order would download all shards of a server for the first batches."""
    reader = Timed(0.0)
    reader.shard_ids = np.arange(40) // 10
    measure_loader(small("data.format=shards", "data.shuffle_shards=1"), reader, World())
    assert [len(set(reader.shard_ids[reader.seen[n : n + 10]])) for n in (0, 10, 20, 30)] == [1] * 4


@pytest.mark.parametrize("settings", [(), ("data.format=synthetic", "data.synthetic_images=50")])
def test_images_that_cannot_be_used_end_the_measurement(small, settings):
    """A recipe with synthetic images decodes the reader's images, too."""
    with pytest.raises(DataError, match="no image of the class"):
        measure_loader(small(*settings), Timed(0, b"no image"), World())
