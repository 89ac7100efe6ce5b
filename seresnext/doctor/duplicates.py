"""Copies of images: equal files, and images that look the same after a resize, another compression or a slight crop."""

import numpy as np

from seresnext.process.packages import extra
from seresnext.progress import progress, warn

DISTANCE, SIMILARITY = 12, 0.9
"""At most so many of 64 bits differ, and the thumbnails have at least this correlation (docs/doctor.md, Copies)."""
MOST_PAIRS = 1_000_000
_ROWS = 256  # of the table of all pairs at one time: 51 MB for 50,000 images


def equal_pairs(digests: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return the pairs of equal files, int64 P 2 with the file to keep first: the first one in the last split."""
    kept, found = {}, []
    for index in np.lexsort((np.arange(len(splits)), -splits)).tolist():
        first = kept.setdefault(digests[index], index)
        if first != index:
            found.append((first, index))
    return np.array(found, np.int64).reshape(-1, 2)


def near_pairs(bits: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the pairs of near duplicates, int64 P 2 with the lower index first, about `MOST_PAIRS` at most.

    The perceptual hashes (bool N 64) of all pairs give the candidates, and the thumbnails (uint8 N D) decide.
    """
    signs = 2 * bits.astype(np.float32) - 1
    centred = pixels.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    found, count = [np.empty((0, 2), np.int64)], 0
    with progress("compare", len(bits), " images") as advance:
        for start in range(0, len(bits), _ROWS):
            alike = signs[start : start + _ROWS] @ signs[start:].T >= 64 - 2 * DISTANCE
            pairs = np.argwhere(np.triu(alike, 1)) + start
            for part in np.split(pairs, range(_ROWS**2, len(pairs), _ROWS**2)):
                part = part[np.einsum("nd,nd->n", *centred[part.T]) >= SIMILARITY]
                found, count = [*found, part], count + len(part)
            advance(len(alike))
            if count > MOST_PAIRS:
                done = start + len(alike)
                warn(f"{count:,} pairs of near duplicates are too many; only {done:,} images are compared with all")
                break
    return np.concatenate(found)


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return the number of the group of each of `count` images (int N). Pairs (int P 2) connect images to groups."""
    with extra("report"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(links, directed=False)[1]
