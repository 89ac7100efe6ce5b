"""The page of the doctor: the findings with thumbnails, as one HTML file."""

from __future__ import annotations

from typing import Any

from seresnext.data.decode.pillow import decode
from seresnext.doctor.examine import Examination
from seresnext.errors import DataError
from seresnext.report.html import SIDE, address, render_page

PICTURES, ROWS, CLASSES = 24, 500, 1000
"""The most thumbnails and rows of a finding, and the most classes, on the page. The JSON file has all."""


def render(result: Examination) -> str:
    """Return the page as ASCII. Raise UsageError without the extra."""
    classes = result.classes()
    totals = [sum(row[split] for split in result.images.split_names) for row in classes]
    pictures = {
        each.key: list(filter(None, (_picture(result, row) for row in each.rows[:PICTURES])))
        for each in result.findings
    }
    return render_page(
        "seresnext.doctor",
        "page.html.jinja",
        result=result,
        pictures={key: list(filter(None, found)) for key, found in pictures.items()},
        classes=classes[:CLASSES],
        largest=(classes[totals.index(max(totals))]["class"], 100 * max(totals) / sum(totals)),
        sizes={name: f"{width} x {height}" for name, (width, height) in result.sizes().items()},
        most=ROWS,
    )


def _picture(result: Examination, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return a row with a thumbnail, next to the image that is alike; None without a readable image."""
    thumbnails, sides = [], []
    for index in row["indices"]:
        if index is not None:
            try:
                image = decode(result.images.read(index), result.images.name(index), result.decoding)
            except DataError:
                return None
            sides.append(max(image.size))
            image.thumbnail((SIDE, SIDE))
            thumbnails.append(address(image))
    return {**row, "thumbnails": thumbnails, "is_small": max(sides) < SIDE}
