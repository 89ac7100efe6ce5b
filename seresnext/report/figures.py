"""The geometry of the charts of a report. The template draws the geometry as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH, _HEIGHT = 520, 320  # of a chart, in units of the SVG, as in the template
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 44
_MOST_POINTS = 400  # of a line; a page has some 500 pixels for them
_MOST_DOTS = 40

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart. `style` is the class in page.css. `radii` are the sizes of the dots, None for equal dots."""

    name: str
    style: str
    points: Points
    radii: Sequence[float] | None = None


def build_chart(
    label: str, x_name: str, y_name: str, series: Sequence[Series], x_range: Range, y_range: Range | None = None
) -> dict[str, Any]:
    """Return the geometry of a chart. `y_range` is None for the range of the points, widened to whole ticks.

    The ticks are pairs of position and text. A line has `path`, the attribute `d`, and dots: x, y, radius and a text
    for the pointer.
    """
    ys = [y for each in series for _, y in each.points]
    y_values = ticks(*(y_range or (min(ys), max(ys))))
    (x_low, x_high), y_low, y_high = x_range, y_values[0], y_values[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / max(x_high - x_low, 1e-9), (y - y_low) / (y_high - y_low)
        left, top = _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)
        return round(left, 1), round(top, 1)

    lines = []
    for each in series:
        points = thin(each.points)
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in (place(*point) for point in points))
        radii = each.radii if each.radii is not None else [3.0] * len(points) * (len(points) <= _MOST_DOTS)
        dots = [
            (*place(x, y), round(radius, 1), f"{each.name}: {y:.4g} at {x_name} {x:.4g}")
            for (x, y), radius in zip(points, radii, strict=False)
        ]
        lines.append({"name": each.name, "style": each.style, "path": path, "dots": dots})
    return {
        "label": label,
        "x_name": x_name,
        "y_name": y_name,
        "x_ticks": [(place(x, y_low)[0], f"{x:g}") for x in ticks(*x_range) if x_low <= x <= x_high],
        "y_ticks": [(place(x_low, y)[1], f"{y:g}") for y in y_values],
        "lines": lines,
        "box": (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM),
    }


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten) from at most `low` to at least `high`."""
    span = high - low or abs(low) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def thin(points: Points) -> Points:
    """Return at most `_MOST_POINTS` points at equal distances, with the last."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    return [*points[: -1 : stride or 1], points[-1]] if points else points
