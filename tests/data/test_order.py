import numpy as np
import pytest

from seresnext.data.order import Order
from seresnext.errors import DataError


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.concatenate([order.micro_batch(step, r).indices for step in steps for r in range(order.replicas)])


def test_an_epoch_shows_no_image_twice_and_leaves_out_another_remainder_each_time():
    order = Order(num_images=103, global_size=20, micro_size=5, seed=3)
    assert (order.steps_per_epoch, order.replicas) == (5, 4)
    remainders = []
    for epoch in range(4):
        seen = epoch_of(order, epoch)
        assert len(seen) == len(set(seen.tolist())) == 100
        remainders.append(frozenset(range(103)) - set(seen.tolist()))
    assert len(set(remainders)) == 4


def test_an_epoch_without_remainder_is_a_permutation():
    order = Order(num_images=60, global_size=20, micro_size=10, seed=0)
    assert sorted(epoch_of(order, 2).tolist()) == list(range(60))
    assert epoch_of(order, 2).tolist() != epoch_of(order, 1).tolist() != list(range(60))


def test_a_global_batch_does_not_depend_on_the_size_of_its_micro_batches():
    coarse, fine = (Order(num_images=64, global_size=16, micro_size=size, seed=1) for size in (16, 2))
    for step in (0, 3, 4, 9):
        parts = [fine.micro_batch(step, replica).indices for replica in range(8)]
        np.testing.assert_array_equal(np.concatenate(parts), coarse.micro_batch(step, 0).indices)


def test_a_micro_batch_is_a_function_of_its_step_whatever_was_asked_before():
    straight, jumping = (Order(num_images=50, global_size=8, micro_size=4, seed=7) for _ in range(2))
    expected = {(step, r): straight.micro_batch(step, r) for step in range(30) for r in range(2)}
    for step, replica in [(29, 1), (0, 0), (13, 1), (5, 0), (6, 1), (29, 0)]:
        key = jumping.micro_batch(step, replica)
        assert key[:3] == (step, replica, step // 6) == expected[step, replica][:3]
        np.testing.assert_array_equal(key.indices, expected[step, replica].indices)


def test_another_seed_is_another_order():
    one, other = (Order(num_images=50, global_size=50, micro_size=50, seed=seed) for seed in (0, 1))
    assert one.micro_batch(0, 0).indices.tolist() != other.micro_batch(0, 0).indices.tolist()


def test_too_few_images_for_one_step_says_both_sizes():
    with pytest.raises(DataError, match=r"15 training images.*batch.global_size: 16"):
        Order(num_images=15, global_size=16, micro_size=8, seed=0)
    assert Order(num_images=16, global_size=16, micro_size=8, seed=0).steps_per_epoch == 1
