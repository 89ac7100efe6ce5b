import numpy as np
import pytest

from seresnext.data.order import Order
from seresnext.errors import DataError
from seresnext.randomness import permutation_at


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.concatenate([order.micro_batch(step, r).indices for step in steps for r in range(order.replicas)])


def global_batch(order: Order, step: int) -> list[tuple[int, int]]:
    """Return (image, copy) of a step for all replicas."""
    return [(i, c) for r in range(order.replicas) for _, i, c in order.micro_batch(step, r).addresses()]


def test_an_epoch_shows_no_image_twice_and_leaves_out_another_remainder_each_time():
    order = Order(num_images=103, global_size=20, micro_size=5, seed=3)
    assert (order.steps_per_epoch, order.replicas) == (5, 4)
    remainders = set()
    for epoch in range(4):
        seen = epoch_of(order, epoch).tolist()
        assert len(seen) == len(set(seen)) == 100
        remainders.add(frozenset(range(103)) - set(seen))
    assert len(remainders) == 4


def test_images_are_slices_of_the_permutation_at_the_address_in_any_order_of_steps():
    order = Order(num_images=50, global_size=8, micro_size=4, seed=7)
    for step, replica in [(0, 0), (5, 1), (6, 0), (29, 1), (0, 0), (13, 1), (5, 0)]:
        start = step % 6 * 8 + replica * 4
        key = order.micro_batch(step, replica)
        expected = permutation_at(7, "order", step // 6, count=50)[start : start + 4].tolist()
        assert key[:3] == (step, replica, step // 6)
        assert key.addresses() == [(step // 6, image, 0) for image in expected]


def test_too_few_images_for_one_step_are_reported_with_both_sizes():
    with pytest.raises(DataError, match=r"15 images.*batch.global_size: 16"):
        Order(num_images=15, global_size=16, micro_size=8, seed=0)
    assert Order(num_images=16, global_size=16, micro_size=8, seed=0).steps_per_epoch == 1


# ----------------------------------------------------------------------------------- repeated augmentation


@pytest.mark.parametrize(("repeats", "micro_size"), [(1, 4), (2, 24), (2, 2), (3, 4), (3, 8), (6, 2), (6, 24)])
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
        counts = np.unique(order.micro_batch(1, replica).indices, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
        assert counts.max() <= (1 if repeats <= order.replicas else -(-repeats // order.replicas) + 1)


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_global_batch_does_not_depend_on_the_size_of_micro_batches(repeats: int):
    coarse, fine = (Order(num_images=64, global_size=16, micro_size=size, seed=1, repeats=repeats) for size in (16, 2))
    for step in (0, 3, 4, 9):
        assert global_batch(coarse, step) == global_batch(fine, step)


# ------------------------------------------------------------------------------------------ blocks of shards


def test_blocks_of_shards_are_mixed_within_themselves():
    shard_ids = np.repeat(np.arange(10), 12)
    order = Order(120, 24, 8, seed=4, shard_ids=shard_ids, shards_per_block=2)
    pairs = set()
    for epoch in range(2):
        images = epoch_of(order, epoch)
        assert sorted(images.tolist()) == list(range(120))
        for block in shard_ids[images].reshape(5, 24):  # A step is as large as a block here.
            assert len(set(block.tolist())) == 2
            assert len(np.flatnonzero(np.diff(block))) > 4  # The images of both shards are mixed.
            pairs.add(frozenset(block.tolist()))
    assert len(pairs) > 5  # Other pairs in the next epoch.


def test_blocks_of_all_shards_are_the_order_without_blocks():
    whole = Order(50, 10, 5, seed=2, shard_ids=np.repeat(np.arange(5), 10), shards_per_block=5)
    assert epoch_of(whole, 1).tolist() == epoch_of(Order(50, 10, 5, seed=2), 1).tolist()


# ----------------------------------------------------------------------------------- balanced classes


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 4], [60, 25, 3, 12]))  # Class 2 has no image.


def balanced_order(micro_size: int = 6, seed: int = 5, repeats: int = 1) -> Order:
    return Order(len(LABELS), 12, micro_size, seed, repeats, labels=LABELS)


def test_classes_are_equally_frequent_and_images_come_again_only_after_all_of_their_class():
    order = balanced_order()
    assert order.steps_per_epoch == 8  # floor(100 / 12)
    images = np.concatenate([epoch_of(order, epoch) for epoch in range(10)])
    assert {tuple(np.bincount(LABELS[part], minlength=5)) for part in np.split(images, 80)} == {(3, 3, 0, 3, 3)}
    for label in (0, 1, 3, 4):
        own = images[LABELS[images] == label]
        members = set(np.flatnonzero(label == LABELS).tolist())
        rounds = [own[start : start + len(members)].tolist() for start in range(0, len(own), len(members))]
        assert all(set(whole) == members for whole in rounds[:-1])
        assert len({tuple(whole) for whole in rounds[:-1]}) > 1 or len(rounds) < 3
    plain = epoch_of(Order(len(LABELS), 12, 6, 5), 0)  # The control.
    assert len(set(np.bincount(LABELS[plain], minlength=5))) > 2


def test_a_balanced_batch_is_a_function_of_seed_and_step_for_any_micro_size():
    whole = [global_batch(balanced_order(), step) for step in range(30)]
    order, fine = balanced_order(), balanced_order(micro_size=2)
    for step in (29, 7, 8, 0, 16):
        assert global_batch(order, step) == global_batch(fine, step) == whole[step]
    assert [global_batch(balanced_order(seed=6), step) for step in range(30)] != whole


@pytest.mark.parametrize("repeats", [1, 2])
def test_each_view_of_an_image_in_an_epoch_is_another_copy(repeats: int):
    """Three images of class 3 make a quarter of an epoch. The copy is an address of random draws."""
    order = balanced_order(repeats=repeats)
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        views = [view for step in steps for view in global_batch(order, step)]
        assert len(set(views)) == len(views) == 96
        images = [image for image, _ in views]
        assert len(set(images)) < 96 / repeats
        assert min(copy for image, copy in views if LABELS[image] == 3) == 0
