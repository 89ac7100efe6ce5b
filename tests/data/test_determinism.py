"""With all augmentations, a run is the same for any number of workers and ranks and any start step.

The tests compare each micro-batch as the model sees it: mirrored, normalised, erased and mixed.
"""

import hashlib
import itertools

import pytest
import torch
from encoded_images import Images, encoded, noise, rgb
from torch import Tensor

from seresnext.data.augment.crop import ImageSizeSchedule, random_resized_crop
from seresnext.data.augment.erase import EraseFill
from seresnext.data.augment.mixup import MixupCutmix
from seresnext.data.batches import Batch, TrainImages
from seresnext.data.decode.pillow import Decoding
from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.loading.prefetch import prefetch
from seresnext.data.order import BatchKey, Order
from seresnext.randomness import rng_at
from seresnext.recipe.schema import AugmentSection, ColorJitterSection, ErasingSection, PolicySection

IMAGES, GLOBAL, MICRO, REPEATS = 50, 16, 4, 2
TOTAL = 9  # Three epochs of three steps.
RAMP = ImageSizeSchedule(min_size=16, max_size=48, start=1, end=6)


READER = Images(*(encoded(noise(60, 50 + n), "PNG" if n % 3 == 0 else "JPEG") for n in range(IMAGES)))


def source(kind: type[TrainImages] = TrainImages, seed: int = 5) -> TrainImages:
    """Training images with every augmentation on."""
    augment = AugmentSection(
        policy=PolicySection(num_ops=2, magnitude=9),
        color_jitter=ColorJitterSection(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        erasing=ErasingSection(probability=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
    )
    return kind(READER, augment, 48, seed=seed, decoding=Decoding(10**6))


Seen = tuple[int, int, list[tuple[int, int, int]], str]
"""A micro-batch: step, replica, addresses of the images, and the hash of the model's input."""


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes() + repr(tensor.shape).encode()).hexdigest()


def rank_sees(train: TrainImages, replicas: range, start: int, workers: int, seed: int) -> list[Seen]:
    keys = list(train_keys(Order(IMAGES, GLOBAL, MICRO, seed, REPEATS), replicas, start, TOTAL, RAMP))
    mix = MixupCutmix(num_classes=2, seed=seed, mixup=0.2, cutmix=1.0, last_step=7)
    seen = []
    with open_batches(train, iter(keys), workers=workers, timeout=60, pin_memory=False) as batches:
        fed = prefetch(
            batches,
            device=torch.device("cpu"),
            dtype=torch.float32,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            channels_last=True,
            fill=EraseFill("random", seed),
        )
        for key, batch in zip(keys, fed, strict=True):
            images, targets = mix(batch.images, batch.labels, step=batch.step, replica=batch.replica)
            seen.append((batch.step, batch.replica, key.addresses(), digest(images) + digest(targets)))
    return seen


def run(
    *, workers: int = 0, world: int = 1, start: int = 0, seed: int = 5, kind: type[TrainImages] = TrainImages
) -> list[Seen]:
    """Return the micro-batches of all ranks of a world, in the order of global batches."""
    count = GLOBAL // MICRO // world
    ranks = [
        rank_sees(source(kind, seed), range(rank * count, (rank + 1) * count), start, workers, seed)
        for rank in range(world)
    ]
    return sorted(itertools.chain(*ranks))


@pytest.fixture(scope="module")
def straight() -> list[Seen]:
    """Return the run in one process, without workers, from the first step."""
    return run()


def test_everything_is_on(straight: list[Seen]):
    assert len(straight) == TOTAL * GLOBAL // MICRO
    for step in range(TOTAL):
        images = {image for number, _, addresses, _ in straight if number == step for _, image, _ in addresses}
        assert len(images) == GLOBAL // REPEATS
    sizes = {RAMP.size_at(step) for step in range(TOTAL)}
    assert sizes == {16, 32, 48}
    made = [
        source().make(key) for key in train_keys(Order(IMAGES, GLOBAL, MICRO, 5, REPEATS), range(4), 0, TOTAL, RAMP)
    ]
    assert {batch.images.shape[2:] for batch in made} == {(size, size) for size in sizes}
    assert len({digest(image) for batch in made for image in batch.images}) == TOTAL * GLOBAL
    assert not any(batch.flips.any() for batch in made)  # Mirrored before the policies.
    boxes = torch.cat([batch.boxes for batch in made if batch.boxes is not None])
    assert 0.3 < (boxes[:, 2] > 0).double().mean() < 0.7


@pytest.mark.parametrize(
    "settings",
    [{"workers": 1}, {"workers": 3}, {"world": 2}, {"world": 4}, {"start": 1}, {"start": TOTAL - 1},
     {"start": TOTAL // 2, "workers": 3, "world": 2}],
    ids=str,
)  # fmt: skip
def test_any_number_of_workers_and_ranks_and_any_start(straight: list[Seen], settings: dict[str, int]):
    assert run(**settings) == [seen for seen in straight if seen[0] >= settings.get("start", 0)]


def test_another_seed_is_another_run(straight: list[Seen]):
    assert all(one[3] != another[3] for one, another in zip(straight, run(seed=6), strict=True))


class InTurn(TrainImages):
    """A wrong source: draws come from a stream, one after the other."""

    _calls = 0

    def make(self, key: BatchKey) -> Batch:
        self.seed = type(self)._calls
        type(self)._calls += 1
        return super().make(key)


@pytest.mark.parametrize("other", [{"workers": 3}, {"world": 2}, {"start": 4}], ids=str)
def test_draws_in_turn_give_another_run(other: dict[str, int]):
    def alone(**settings: int) -> list[Seen]:
        InTurn._calls = 0
        return run(kind=InTurn, **settings)

    expected = [seen for seen in alone() if seen[0] >= other.get("start", 0)]
    assert alone(**other) != expected


@pytest.mark.parametrize("field", ["epoch", "indices", "copies"])
def test_pixels_belong_to_epoch_image_and_copy_and_to_nothing_else(field: str):
    key = Order(IMAGES, GLOBAL, MICRO, 5, REPEATS).micro_batch(3, 1)
    elsewhere = key._replace(step=8, replica=3)
    once = source().make(key)
    assert torch.equal(source().make(elsewhere).images, once.images)
    # In another order, each image is still the same.
    turned = source().make(key._replace(indices=key.indices[::-1].copy(), copies=key.copies[::-1].copy()))
    assert torch.equal(turned.images.flip(0), once.images)
    changed = source().make(key._replace(**{field: getattr(key, field) + 1}))
    assert not any(torch.equal(a, b) for a, b in zip(changed.images, once.images, strict=True))


def test_no_augmentation_moves_the_crops_and_flips_of_a_recipe_without_it():
    key = Order(IMAGES, GLOBAL, MICRO, 5).micro_batch(3, 1)
    plain, erased, retouched = (
        TrainImages(READER, augment, 48, seed=5, decoding=Decoding(10**6)).make(key)
        for augment in (
            AugmentSection(),
            AugmentSection(erasing=ErasingSection(probability=1, scale=(0.1, 0.2), ratio=(1, 2))),
            AugmentSection(color_jitter=ColorJitterSection()),
        )
    )
    assert plain.boxes is None
    draws = [rng_at(5, "augment", 1, image, 0) for image in key.indices.tolist()]
    sizes = [rgb(READER.read(image)).size for image in key.indices.tolist()]
    crops = [random_resized_crop(AugmentSection(), *size, own) for size, own in zip(sizes, draws, strict=True)]
    assert plain.flips.tolist() == [crop.flip for crop in crops]
    assert torch.equal(erased.images, plain.images)
    assert torch.equal(erased.flips, plain.flips)
    mirrored = torch.where(plain.flips.view(-1, 1, 1, 1), plain.images.flip(3), plain.images)
    assert torch.equal(retouched.images, mirrored)
