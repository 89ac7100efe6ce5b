"""Random numbers: SplitMix64's published outputs, uniform draws, permutations, and distinct hashes of addresses.

The statistical limits are wide (a p-value of about 1e-6) and the seeds are fixed, so chance does not fail a test.
"""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from seresnext.randomness import RandomStream, hash_at, permutation_at, rng_at, torch_seed_at


def test_generator_is_splitmix64() -> None:
    # The first outputs of Vigna's splitmix64.c for seed 1234567, published as a test of ports.
    draws = RandomStream(1234567)
    assert [draws._next() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_numbers_never_change() -> None:
    # These numbers order and augment every run. Another number would change the result of every recipe.
    assert hash_at(0) == 16294208416658607535
    assert hash_at(0, "augment", 3, 12345, 0) == 9036409713030079174
    assert permutation_at(7, "order", 2, count=12).tolist() == [6, 5, 8, 9, 0, 4, 7, 2, 3, 1, 11, 10]
    draws = rng_at(1, "mix", 5)
    assert [draws.randint(1000) for _ in range(5)] == [618, 33, 685, 862, 693]


def test_every_bit_of_a_hash_is_uniform_and_depends_on_every_part() -> None:
    def bits(*address: int | str) -> np.ndarray:
        return np.unpackbits(np.array([hash_at(*address)], dtype=">u8").view(np.uint8))

    some = np.array([bits(seed, "order", epoch) for seed in range(100) for epoch in range(40)], dtype=float)
    assert np.abs(some.mean(0) - 0.5).max() * 2 * np.sqrt(len(some)) < 5
    for a, b, c in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1 << 40, 0]):
        numbers = range(0, 4000, 4)
        changed = np.mean([bits(n, n + 1, n + 2) != bits(n ^ a, (n + 1) ^ b, (n + 2) ^ c) for n in numbers])
        assert abs(changed - 0.5) * 2 * np.sqrt(64 * 1000) < 5


def test_integers_and_events_have_their_probabilities() -> None:
    draws = RandomStream(5)
    counts = np.bincount([draws.randint(7) for _ in range(35_000)], minlength=7)
    assert len(counts) == 7
    assert chisquare(counts).pvalue > 1e-6
    assert not any(draws.bernoulli(0.0) for _ in range(1000))
    assert all(draws.bernoulli(1.0) for _ in range(1000))
    assert abs(sum(draws.bernoulli(0.3) for _ in range(20_000)) - 6000) < 5 * np.sqrt(20_000 * 0.3 * 0.7)


@given(st.integers(0, 2**64 - 1), st.integers(1, 10**9), st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_numbers_are_in_range(state: int, count: int, low: float, width: float) -> None:
    assert 0 <= RandomStream(state).randint(count) < count
    assert low <= RandomStream(state).uniform(low, low + width) <= low + width
    assert 0 <= torch_seed_at(state, "step", count, 0) < 2**63


def test_addresses_have_distinct_hashes() -> None:
    addresses = [
        ("a", 1, 23), ("a", 12, 3), ("a", 123), ("a", 1, 2, 3), ("a", 23, 1), ("a1", 23), ("a", "1", 23), (1, "a", 23),
        ("a",), (), ("",), ("a", 0), ("a", 0, 0), (0,), (0, 0), ("a", -1), ("b", 1, 23),
    ]  # fmt: skip
    hashes = [hash_at(seed, *address) for seed in (0, 1, 2) for address in addresses]
    assert len(set(hashes)) == len(hashes)
    many = {hash_at(seed, *address) for seed in range(4) for address in itertools.product(range(20), repeat=3)}
    assert len(many) == 4 * 20**3


@given(st.integers(0, 2**63), st.integers(0, 300), st.integers(0, 500))
def test_a_permutation_has_every_index_once(seed: int, epoch: int, count: int) -> None:
    order = permutation_at(seed, "order", epoch, count=count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's correlation, in standard deviations for two random orders."""
    return float(np.corrcoef(np.argsort(a), np.argsort(b))[0, 1] * np.sqrt(len(a) - 1))


def test_orders_of_epochs_and_seeds_are_independent() -> None:
    count = 20_000
    orders = [permutation_at(seed, "order", epoch, count=count) for seed in (0, 1) for epoch in range(6)]
    for a, b in itertools.combinations([*orders, np.arange(count)], 2):
        assert abs(rank_correlation(a, b)) < 5
        assert np.sum(a == b) < 15  # A random permutation has 1 fixed point on average.
    # Negative control: an order that differs in a tenth of the places is detected.
    nearly = orders[0].copy()
    nearly[: count // 10] = nearly[: count // 10][::-1]
    assert abs(rank_correlation(orders[0], nearly)) > 50
