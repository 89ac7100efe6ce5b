"""The geometry of charts, as properties."""

import pytest

from seresnext.report.figures import Series, build_chart, thin, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.2, 2.4, [0, 0.5, 1, 1.5, 2, 2.5]),
        (3, 3, [3, 4]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (96.1, 97.9, [96, 96.5, 97, 97.5, 98]),
    ],
)
def test_ticks_are_round_and_include_the_range(low, high, expected):
    found = ticks(low, high)
    if low != high:
        assert found == pytest.approx(expected)
    assert found[0] <= low
    assert found[-1] >= high
    assert len(found) in range(2, 9)


def test_points_are_inside_of_the_box_and_in_order():
    chart = build_chart("label", "x", "y", [Series("a", "first", [(0, 1), (5, 3), (10, 2)])], (0, 10))
    left, top, right, bottom = chart["box"]
    (line,) = chart["lines"]
    xs, ys, _, texts = zip(*line["dots"], strict=True)
    assert xs == (left, (left + right) / 2, right)
    assert top <= ys[1] < ys[2] < ys[0] <= bottom  # SVG counts from the top.
    assert line["path"].startswith(f"M{left} ")
    assert line["path"].count("L") == 2
    assert "a: 3 at x 5" in texts[1]


def test_one_point_and_equal_points_are_drawn():
    for points in ([(0.0, 0.0)], [(1.0, 5.0), (1.0, 5.0)]):
        x = points[0][0]
        assert "nan" not in str(build_chart("label", "x", "y", [Series("a", "first", points)], (x, x)))


@pytest.mark.parametrize("count", [0, 1, 399, 400, 401, 12_345])
def test_many_points_are_thinned(count):
    points = [(float(number), 0.0) for number in range(count)]
    found = thin(points)
    assert len(found) <= 401
    assert list(found[:1]) == points[:1]
    assert list(found[-1:]) == points[-1:]
    assert (found == points) == (count <= 400)
