import numpy as np
import pytest

from seresnext.data.order import Order, block_shuffle
from seresnext.errors import DataError
from seresnext.randomness import permutation_at


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


def test_a_micro_batch_is_a_function_of_its_step_in_any_order():
    straight, jumping = (Order(num_images=50, global_size=8, micro_size=4, seed=7) for _ in range(2))
    expected = {(step, r): straight.micro_batch(step, r) for step in range(30) for r in range(2)}
    for step, replica in [(29, 1), (0, 0), (13, 1), (5, 0), (6, 1), (29, 0)]:
        key = jumping.micro_batch(step, replica)
        assert key[:3] == (step, replica, step // 6) == expected[step, replica][:3]
        np.testing.assert_array_equal(key.indices, expected[step, replica].indices)


@pytest.mark.parametrize(("images", "micro", "repeats"), [(55, 32, 1), (55, 8, 3), (7, 8, 1)])
def test_the_advice_for_too_few_images_is_accepted(images: int, micro: int, repeats: int):
    with pytest.raises(DataError) as caught:
        Order(images, 96, micro, 0, repeats)
    advice = str(caught.value).partition("set batch.global_size=")[2]
    assert bool(advice) == (micro <= images)
    if advice:
        assert Order(images, int(advice), micro, 0, repeats).steps_per_epoch == 1


def test_another_seed_is_another_order():
    one, other = (Order(num_images=50, global_size=50, micro_size=50, seed=seed) for seed in (0, 1))
    assert one.micro_batch(0, 0).indices.tolist() != other.micro_batch(0, 0).indices.tolist()


def test_too_few_images_for_one_step_are_reported_with_both_sizes():
    with pytest.raises(DataError, match=r"15 training images.*batch.global_size: 16"):
        Order(num_images=15, global_size=16, micro_size=8, seed=0)
    assert Order(num_images=16, global_size=16, micro_size=8, seed=0).steps_per_epoch == 1


# ----------------------------------------------------------------------------------- repeated augmentation


def global_batch(order: Order, step: int) -> list[tuple[int, int]]:
    """Return (image, copy) of a step for all replicas."""
    return [(i, c) for r in range(order.replicas) for _, i, c in order.micro_batch(step, r).addresses()]


@pytest.mark.parametrize("micro_size", [2, 4, 8, 24])
@pytest.mark.parametrize("repeats", [1, 2, 3, 6])
def test_each_image_of_a_global_batch_comes_so_often_as_other_copies(repeats: int, micro_size: int):
    order = Order(num_images=103, global_size=24, micro_size=micro_size, seed=3, repeats=repeats)
    assert order.steps_per_epoch == 4
    for epoch in range(2):
        shown = []
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = global_batch(order, step)
            images = {image for image, _ in batch}
            assert len(images) == 24 // repeats
            assert sorted(batch) == sorted((image, copy) for image in images for copy in range(repeats))
            shown += images
        assert len(set(shown)) == len(shown) == 4 * 24 // repeats


@pytest.mark.parametrize("repeats", [2, 3, 4, 6])
@pytest.mark.parametrize("micro_size", [2, 3, 4, 6, 12, 24])
def test_copies_are_spread_over_the_replicas(micro_size: int, repeats: int):
    order = Order(num_images=48, global_size=24, micro_size=micro_size, seed=0, repeats=repeats)
    for replica in range(order.replicas):
        key = order.micro_batch(1, replica)
        counts = np.unique(key.indices, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
        if repeats <= order.replicas:
            assert counts.max() == 1
        else:
            assert counts.max() <= -(-repeats // order.replicas) + 1


def test_copies_do_not_depend_on_the_size_of_micro_batches():
    coarse, fine = (Order(num_images=64, global_size=16, micro_size=size, seed=1, repeats=4) for size in (16, 2))
    for step in (0, 3, 4, 9):
        assert global_batch(coarse, step) == global_batch(fine, step)


def test_without_repeats_images_are_slices_of_the_permutation():
    order = Order(num_images=50, global_size=8, micro_size=4, seed=7)
    for step, replica in [(0, 0), (5, 1), (6, 0), (29, 1)]:
        start = step % 6 * 8 + replica * 4
        key = order.micro_batch(step, replica)
        expected = permutation_at(7, "order", step // 6, count=50)[start : start + 4]
        np.testing.assert_array_equal(key.indices, expected)
        assert key.addresses() == [(step // 6, image, 0) for image in expected.tolist()]


def test_blocks_of_shards_are_mixed_within_themselves():
    shard_ids = np.repeat(np.arange(10), 12)
    order = Order(120, 24, 8, seed=4, blocks=block_shuffle(shard_ids, 2))
    seen = [epoch_of(order, epoch) for epoch in range(2)]
    pairs = []
    for images in seen:
        assert sorted(images.tolist()) == list(range(120))
        for step in range(5):  # A step is as large as a block here.
            block = images[24 * step : 24 * (step + 1)]
            assert len(set(shard_ids[block].tolist())) == 2
            assert len(np.flatnonzero(np.diff(shard_ids[block]))) > 4  # The images of both shards are mixed.
            pairs.append(frozenset(shard_ids[block].tolist()))
    assert len(set(pairs)) > 5  # Other pairs in the next epoch.


def test_blocks_of_all_shards_are_the_order_without_blocks():
    shard_ids = np.repeat(np.arange(5), 10)
    whole = Order(50, 10, 5, seed=2, blocks=block_shuffle(shard_ids, 5))
    plain = Order(50, 10, 5, seed=2)
    assert epoch_of(whole, 1).tolist() == epoch_of(plain, 1).tolist()


def test_a_micro_batch_of_blocks_is_a_function_of_its_step():
    orders = [Order(50, 10, 5, seed=2, blocks=block_shuffle(np.arange(50) // 10, 2)) for _ in range(2)]
    ahead = orders[0].micro_batch(17, 1).indices.tolist()
    for step in range(18):
        last = orders[1].micro_batch(step, 1).indices.tolist()
    assert last == ahead


def test_steps_in_any_order_give_the_same_micro_batches():
    steps = [0, 1, 5, 6, 7, 30, 31, 2, 3, 4]  # 5 an epoch: the next one, later ones, and back.
    order = Order(53, 10, 10, seed=3)
    for step in steps:
        expected = Order(53, 10, 10, seed=3).micro_batch(step, 0).indices
        np.testing.assert_array_equal(order.micro_batch(step, 0).indices, expected)
