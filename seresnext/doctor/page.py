"""The page of the doctor: the findings with thumbnails, as one HTML file."""

from typing import Any

from seresnext.data.decode.pillow import Decoding, decode
from seresnext.doctor.images import Collection
from seresnext.report.html import SIDE, address, render_page

PICTURES, ROWS, CLASSES = 24, 500, 1000
"""The most thumbnails and rows of a finding, and the most classes, on the page. The JSON file has all."""


def render(result: dict[str, Any], images: Collection, decoding: Decoding) -> str:
    """Return the page of an examination as ASCII. Raise UsageError without the extra, DataError for a lost image."""
    totals = {row["class"]: sum(row[split] for split in images.split_names) for row in result["classes"]}
    largest = max(totals, key=lambda name: totals[name])
    pictures = {
        each["key"]: [_picture(images, decoding, row) for row in each["rows"][:PICTURES] if row["indices"]]
        for each in result["findings"]
    }
    return render_page(
        "seresnext.doctor",
        result=result,
        pictures=pictures,
        classes=result["classes"][:CLASSES],
        largest=(largest, 100 * totals[largest] / sum(totals.values())),
        most=ROWS,
    )


def _picture(images: Collection, decoding: Decoding, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a thumbnail, next to the image that is alike."""
    shown = [decode(images.read(index), images.name(index), decoding) for index in row["indices"]]
    is_small = max(max(image.size) for image in shown) < SIDE
    for image in shown:
        image.thumbnail((SIDE, SIDE))
    return {**row, "thumbnails": [address(image) for image in shown], "is_small": is_small}
