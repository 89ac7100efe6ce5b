"""Copies of images: equal files, and images that look the same after a resize, another compression or a slight crop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from seresnext.process.packages import extra
from seresnext.progress import progress

DISTANCE, SIMILARITY = 12, 0.9
"""Two images are near duplicates if at most so many of the 64 bits of their hashes differ, and if the correlation of
their thumbnails is at least so high. docs/doctor.md has the measurement behind the numbers."""
MOST_PAIRS = 1_000_000
_ROWS = 256  # of the table of all pairs at one time: 51 MB for 50,000 images


def exact_groups(digests: Sequence[bytes], indices: np.ndarray) -> list[list[int]]:
    """Return the groups of at least two images whose files are equal, each in order."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index in indices.tolist():
        groups[digests[index]].append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(bits: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the pairs of near duplicates, int64 P 2 with the lower index first, at most about `MOST_PAIRS`.

    bits: perceptual hashes, bool N 64. pixels: thumbnails, uint8 N D. The hash finds candidates by a comparison of all
    pairs, in blocks of bounded memory. The thumbnails decide.
    """
    signs = 2 * bits.astype(np.float32) - 1
    centred = pixels.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    found, count = [np.empty((0, 2), np.int64)], 0
    with progress("compare", len(bits), " images") as advance:
        for start in range(0, len(bits), _ROWS):
            alike = signs[start : start + _ROWS] @ signs[start:].T >= 64 - 2 * DISTANCE
            first, second = np.nonzero(np.triu(alike, 1))
            first, second = first + start, second + start
            for part in range(0, len(first), MOST_PAIRS):
                one, other = first[part : part + MOST_PAIRS], second[part : part + MOST_PAIRS]
                similar = np.einsum("nd,nd->n", centred[one], centred[other]) >= SIMILARITY
                found.append(np.stack([one[similar], other[similar]], 1))
                count += int(similar.sum())
            advance(len(alike))
            if count > MOST_PAIRS:
                break
    return np.concatenate(found)


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return the number of the group of each of `count` images (int N). Pairs (P 2) connect images to groups."""
    with extra("report"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    ones = np.ones(len(pairs), np.int8)
    return connected_components(coo_array((ones, (pairs[:, 0], pairs[:, 1])), (count, count)), directed=False)[1]
