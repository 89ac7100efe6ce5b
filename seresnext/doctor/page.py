"""The page of the doctor: the findings with thumbnails, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seresnext.data.decode.pillow import decode
from seresnext.doctor.examine import Examination, quantiles
from seresnext.doctor.findings import Finding
from seresnext.errors import DataError
from seresnext.report.html import SIDE, address, render_page

PICTURES, ROWS, CLASSES = 24, 500, 1000
"""The most thumbnails and rows of a finding, and the most rows of classes, on the page. The JSON file has all."""


def render(result: Examination) -> str:
    """Return the page as ASCII. Raise UsageError without the extra."""
    sections = [
        {
            "finding": finding,
            "count": len(finding.rows),
            "listed": sum(row.excluded for row in finding.rows),
            "rows": result.rows(finding)[:ROWS],
            "pictures": _pictures(result, finding),
        }
        for finding in result.findings
    ]
    good = result.looks.good
    names = [result.images.classes[each] for pair in result.pairs for each in (pair.first, pair.second)]
    largest = max((sum(row[split] for split in result.images.split_names), row["class"]) for row in result.classes())
    return render_page(
        "seresnext.doctor",
        "page.html.jinja",
        result=result,
        sections=sections,
        classes=result.classes(),
        most_classes=CLASSES,
        splits=result.images.split_names,
        largest=largest,
        sizes=quantiles(result.looks.size[good]) if len(good) else (),
        pair_names=list(zip(names[::2], names[1::2], result.pairs, strict=True)),
    )


def _pictures(result: Examination, finding: Finding) -> list[Mapping[str, Any]]:
    """Return the first images of a finding, each beside the image that is alike."""
    found = []
    for row, values in zip(finding.rows[:PICTURES], result.rows(finding), strict=False):
        own, other = (None if index is None else _thumbnail(result, index) for index in (row.image, row.other))
        if own:
            found.append({**values, "image": own[0], "is_small": own[1], "beside": other and other[0]})
    return found


def _thumbnail(result: Examination, index: int) -> tuple[str, bool] | None:
    """Return the address of a thumbnail, and whether the image is smaller; None for an image that cannot be read."""
    try:
        image = decode(result.images.read(index), result.images.name(index), result.max_pixels)
    except DataError:
        return None
    is_small = max(image.size) < SIDE
    image.thumbnail((SIDE, SIDE))
    return address(image), is_small
