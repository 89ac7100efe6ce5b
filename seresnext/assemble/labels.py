"""Which label a class has for a model whose file of weights does not name its classes."""

from __future__ import annotations

from collections.abc import Sequence

from seresnext.data.imagenet_classes import imagenet_classes
from seresnext.errors import DataError
from seresnext.weights.names import printable


def labels_by_name(classes: Sequence[str], where: str) -> tuple[list[int], str | None]:
    """Return the label of each class folder of the data `where`, and a notice for the user.

    Numbers from 0 are labels. A model of 1000 classes is taken for one of ImageNet's: its labels are the places of the
    WordNet ids. Raises DataError for 1000 classes of other names, since nothing tells their labels.
    """
    count = len(classes)
    numbers = [int(name) for name in classes if len(name) < 300 and name.isascii() and name.isdigit()]
    if sorted(numbers) == list(range(count)):
        return numbers, f"the class folders of {where} are numbers: each is its label, 0 to {count - 1}"
    places = {row.wordnet_id: place for place, row in enumerate(imagenet_classes())}
    if places.keys() == set(classes):
        return [places[name] for name in classes], None
    if count == len(places):
        others = ", ".join(printable(name) for name in sorted(set(classes) - places.keys())[:3])
        raise DataError(
            f"{where} has {count} class folders, and a file of weights that does not name its {count} classes is for "
            f"ImageNet's WordNet ids or the numbers 0 to {count - 1}, not for {others}; rename each folder to its label"
        )
    first = ", ".join(printable(name) for name in classes[:3])
    return list(range(count)), f"those of {where} are taken in text order: label 0 and so on are {first} ..."
