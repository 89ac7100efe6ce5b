"""The page of the doctor: the findings with thumbnails, as one HTML file."""

from __future__ import annotations

from typing import Any

from seresnext.data.decode.pillow import decode
from seresnext.doctor.examine import Examination
from seresnext.doctor.findings import Row
from seresnext.errors import DataError
from seresnext.report.html import SIDE, address, render_page

PICTURES, ROWS, CLASSES = 24, 500, 1000
"""The most thumbnails and rows of a finding, and the most classes, on the page. The JSON file has all."""


def render(result: Examination) -> str:
    """Return the page as ASCII. Raise UsageError without the extra."""
    splits, classes = result.images.split_names, result.classes()
    totals = [sum(row[split] for split in splits) for row in classes]
    sections = []
    for finding in result.findings:
        pictures = [picture for row in finding.rows[:PICTURES] if (picture := _picture(result, row))]
        rows, listed = map(result.describe, finding.rows[:ROWS]), sum(row.listed for row in finding.rows)
        sections.append({"finding": finding, "pictures": pictures, "rows": list(rows), "listed": listed})
    return render_page(
        "seresnext.doctor",
        "page.html.jinja",
        result=result,
        sections=sections,
        most=ROWS,
        classes=sorted(classes, key=lambda row: sum(row[split] for split in splits))[:CLASSES],
        largest=(classes[totals.index(max(totals))]["class"], 100 * max(totals) / sum(totals)),
        sizes={name: f"{width} x {height}" for name, (width, height) in result.sizes().items()},
    )


def _picture(result: Examination, row: Row) -> dict[str, Any] | None:
    """Return an image of a finding with a thumbnail, beside the image that is alike; None without a readable image."""
    thumbnails, sides = [], []
    for index in (row.image, row.other):
        if index is None:
            continue
        try:
            image = decode(result.images.read(index), result.images.name(index), result.decoding)
        except DataError:
            return None
        sides.append(max(image.size))
        image.thumbnail((SIDE, SIDE))
        thumbnails.append(address(image))
    return {**result.describe(row), "thumbnails": thumbnails, "is_small": max(sides) < SIDE}
