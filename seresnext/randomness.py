"""Randomness with an address: a draw is "the number for this image in this epoch", not "the next number".

A draw is a function of (seed, purpose, address) alone. The result is therefore the same with 0 or 16 workers, before
and after a resume, on 1 or 8 GPUs. The generator is written here, so that a new version of a library cannot change a
run: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 15; constants of
variant 13 in Stafford's list, as in Vigna's splitmix64.c).
"""

import hashlib
from functools import cache

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@cache
def _word(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_at(seed: int, *address: int | str) -> int:
    """Return a 64-bit hash of an address. Each part is hashed in turn, so (1, 23), (12, 3) and (23, 1) all differ."""
    state = _mix((seed + _GOLDEN_GAMMA) & _MASK)
    for word in address:
        number = _word(word) if isinstance(word, str) else word
        state = _mix(((state + _GOLDEN_GAMMA) & _MASK) ^ _mix((number + _GOLDEN_GAMMA) & _MASK))
    return state


class RandomStream:
    """The stream of draws at one address."""

    def __init__(self, state: int) -> None:
        self._state = state

    def _next(self) -> int:
        self._state = (self._state + _GOLDEN_GAMMA) & _MASK
        return _mix(self._state)

    def random(self) -> float:
        """Return a float, uniform in [0, 1), a multiple of 2^-53."""
        return (self._next() >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """Return a float, uniform in [low, high)."""
        return low + (high - low) * self.random()

    def randint(self, count: int) -> int:
        """Return an int, uniform in 0 .. count - 1. The bias is below count / 2^64."""
        return self._next() * count >> 64

    def bernoulli(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability


def rng_at(seed: int, *address: int | str) -> RandomStream:
    """Return the stream at an address, for example `rng_at(seed, "augment", epoch, image, copy)`."""
    return RandomStream(hash_at(seed, *address))


def torch_seed_at(seed: int, *address: int | str) -> int:
    """Return a seed for torch's generators at an address: 63 bits, as `torch.manual_seed` takes."""
    return hash_at(seed, *address) >> 1


def permutation_at(seed: int, *address: int | str, count: int) -> np.ndarray:
    """Return a permutation of 0 .. count - 1 (int64) at an address: the indices sorted by a keyed 64-bit hash.

    The key is `hash_at(seed, *address)`. Equal hashes keep the order of the indices.
    """
    z = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN_GAMMA)) + np.uint64(hash_at(seed, *address))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")
