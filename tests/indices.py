"""An index for tests, and what is the same about two."""

from __future__ import annotations

import numpy as np

from seresnext.data.readers.index import Index, IndexColumns

COLUMNS = ("label", "offset", "size", "name_ends", "names")


def contents(count: int = 10, seed: int = 0) -> IndexColumns:
    rng = np.random.default_rng(seed)
    names = [b"%d.JPEG" % n for n in rng.permutation(count)]
    return IndexColumns(
        classes=("ä", "b\udcff", "c"),
        fingerprint="f" * 64,
        notices=("3 .x\udcff", "two\nlines"),
        label=np.sort(rng.integers(0, 3, count)),
        offset=rng.integers(0, 1 << 40, count),
        size=rng.integers(0, 1 << 20, count),
        names=np.frombuffer(b"".join(names), np.uint8),
        name_ends=np.cumsum([len(name) for name in names]),
    )


def assert_same(index: Index, said: IndexColumns) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(index, name), getattr(said, name), name)
    for name in ("classes", "fingerprint", "notices"):
        assert getattr(index, name) == getattr(said, name), name
