import numpy as np
import pytest

from seresnext.data.augment.progressive import ImageSizeSchedule


@pytest.mark.parametrize(("low", "high"), [(160, 192), (128, 224), (32, 512)])
@pytest.mark.parametrize(("start", "end"), [(0, 60), (35, 50), (10, 11)])
def test_sizes_equal_ffcv(low: int, high: int, start: int, end: int):
    for step in range(80):
        # `ImageNetTrainer.get_resolution`, which counts epochs.
        expected = int(np.round(np.interp(step, [start, end], [low, high]) / 32)) * 32
        expected = low if step <= start else high if step >= end else expected
        assert ImageSizeSchedule(low, high, start, end).size_at(step) == expected


def test_sizes_rise_to_the_end_and_are_few():
    sizes = [ImageSizeSchedule(100, 230, 40, 1000).size_at(step) for step in range(1200)]
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == [100, 128, 160, 192, 224, 230]
    assert (sizes[0], sizes[40], sizes[999], sizes[1000]) == (100, 100, 224, 230)


def test_a_ramp_without_length_is_a_jump():
    assert [ImageSizeSchedule(64, 128, 3, 3).size_at(step) for step in (0, 2, 3, 4)] == [64, 64, 128, 128]
