"""Readers: names, labels and encoded bytes of the images of a split. A reader decodes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol
from unicodedata import normalize

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.errors import DataError, listed, printable

if TYPE_CHECKING:
    from seresnext.data.readers.photo_choice import PhotoChoice


class Reader(Protocol):
    """One split of a dataset: random access to encoded images by index.

    `classes` are the class names in the order of the labels, `labels` N whole numbers of any type, `fingerprint` a hash
    of the content of the split. `notices` are warnings that each start prints, such as the number of skipped files.
    `has_local_files`: the images are files of this machine, so that a read costs no download. `shard_ids` is the shard
    number of each image (int N). `choice` states which photos count, for photos only. `is_divided`: the choice divides
    the photos into splits. `left_out` are the photos that cannot be decoded, with the reasons. No reader holds an
    object per image: reference counting would copy the objects into every forked worker.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    fingerprint: str
    notices: tuple[str, ...] = ()
    has_local_files: bool = True
    shard_ids: np.ndarray | None = None
    choice: PhotoChoice | None = None
    is_divided: bool = False
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Return the encoded image. Raises DataError naming the file."""
        ...

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        ...

    def prefetch(self, keys: Iterable[BatchKey]) -> AbstractContextManager[Iterable[BatchKey]]:
        """Return a context manager that gives the same keys. Inside, a reader may download images of later keys."""
        return nullcontext(keys)


def check_same_classes(train: Reader, val: Reader) -> None:
    """Raise DataError when training and validation do not have the same classes, listing the differences."""
    if train.classes == val.classes:
        return
    only_train, only_val = set(train.classes) - set(val.classes), set(val.classes) - set(train.classes)
    differences = [
        f"only in {split}: {shown_classes(names)}"
        for split, names in (("training", only_train), ("validation", only_val))
        if names
    ]
    raise DataError(
        f"the class folders of training ({len(train.classes)}) and validation ({len(val.classes)}) differ: "
        f"{'; '.join(differences)}; a label would stand for two classes. Give validation the class folders of training"
    )


def check_classes(reader: Reader, num_classes: int, root: str) -> None:
    """Raise DataError when the model's number of classes is not that of the data."""
    found = len(reader.classes)
    if found == num_classes:
        return
    if found == 1:
        name = printable(reader.classes[0])
        raise DataError(
            f"{root} has 1 class, {name}; a classifier needs two classes: add folders, or correct data.root"
        )
    fix = f"set model.num_classes={found} or correct data.root"
    raise DataError(f"{root} has {found} class folders, the recipe {num_classes} classes; {fix}")


def shown_classes(names: Iterable[str]) -> str:
    """Return names of classes for a message, sorted. A name with invisible characters has quotes and escapes.

    A terminal shows no difference between two Unicode forms of a letter, or between kinds of spaces.
    """
    shown = [name if name.isprintable() and name == normalize("NFC", name.strip()) else ascii(name) for name in names]
    return ", ".join(map(printable, listed(sorted(shown)))) or "-"
