"""An index for tests, and what is the same about two."""

import numpy as np

from seresnext.data.readers.index import Index, join_names

COLUMNS = ("label", "offset", "size", "name_ends", "names")


def contents(count: int = 10, seed: int = 0) -> Index:
    rng = np.random.default_rng(seed)
    names, ends = join_names(f"{n}.JPEG" for n in rng.permutation(count))
    return Index(
        classes=("ä", "b\udcff", "c"),
        fingerprint="f" * 64,
        notices=("3 .x\udcff", "two\nlines"),
        label=np.sort(rng.integers(0, 3, count)),
        offset=rng.integers(0, 1 << 40, count),
        size=rng.integers(0, 1 << 20, count),
        names=names,
        name_ends=ends,
    )


def assert_same(index: Index, said: Index) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(index, name), getattr(said, name), name)
    for name in ("classes", "fingerprint", "notices"):
        assert getattr(index, name) == getattr(said, name), name
