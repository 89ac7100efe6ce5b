"""Labels of class folders for files of weights without class names."""

from __future__ import annotations

import pytest

from seresnext.data.readers.class_labels import labels_by_name
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.errors import DataError

WORDNET = [row.wordnet_id for row in imagenet_classes()]


@pytest.mark.parametrize("count", [3, 12, 1000])
@pytest.mark.parametrize("width", [1, 4])
def test_numbers_are_labels(count: int, width: int) -> None:
    """The folders come in the order of `torchvision.datasets.ImageFolder`; a label is the number in the name."""
    folders = sorted(f"{number:0{width}d}" for number in range(count))
    labels, notice = labels_by_name(folders, "here/val")
    assert labels == [int(folder) for folder in folders]
    assert (labels == list(range(count))) is (width == 4 or count <= 10)
    assert notice
    assert "here/val" in notice


def test_wordnet_ids_are_sorted() -> None:
    assert labels_by_name(WORDNET, "here") == (list(range(1000)), None)
    turned = WORDNET[::-1]  # Shards may list classes in another order.
    assert labels_by_name(turned, "here") == ([999 - place for place in range(1000)], None)


@pytest.mark.parametrize(
    "folders",
    [
        [str(number) for number in range(1, 1001)],
        [*WORDNET[1:], "n99999999"],
        [*(str(number) for number in range(999)), "007"],  # 7 twice, and no 999
        [*(str(number) for number in range(999)), "\N{SUPERSCRIPT TWO}"],
        [*(str(number) for number in range(999)), "9" * 5000],
        [f"class {number}" for number in range(1000)],
    ],
)
def test_a_thousand_other_names_are_refused(folders: list[str]) -> None:
    with pytest.raises(DataError, match=r"here/val.* 999") as caught:
        labels_by_name(sorted(folders), "here/val")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("folders", [["ant", "bee", "cat"], ["1", "2", "3"], ["0", "1", "1x"], ["0", "00", "1"]])
def test_other_names_are_in_text_order_and_reported(folders: list[str]) -> None:
    labels, notice = labels_by_name(folders, "here/val")
    assert labels == [0, 1, 2]
    assert notice
    assert "text order" in notice
    assert ", ".join(folders) in notice
