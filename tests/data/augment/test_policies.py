import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from encoded_images import noise, rgb
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from seresnext.data.augment.policies import OPERATIONS, AugmentOp, jitter_color, rand_augment, retouch, trivial_augment
from seresnext.randomness import RandomStream, rng_at
from seresnext.recipe.schema import AugmentSection, ColorJitterSection, PolicySection

NOISE = noise(64, 64)
FACTORS = np.linspace(0, 2, 11)
Oracle = Callable[[Image.Image, float, InterpolationMode], Image.Image]


def affine(image: Image.Image, mode: InterpolationMode, **changed: object) -> Image.Image:
    usual = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return F.affine(image, interpolation=mode, **{**usual, **changed})  # type: ignore[arg-type]


# Torchvision's operation of the same parameters, and magnitudes to try.
ORACLES: dict[str, tuple[Oracle, np.ndarray]] = {
    "identity": (lambda image, _, __: image, np.zeros(1)),
    "shear_x": (lambda image, by, mode: affine(image, mode, shear=[by, 0.0], center=[0, 0]), np.linspace(-44, 44, 23)),
    "shear_y": (lambda image, by, mode: affine(image, mode, shear=[0.0, by], center=[0, 0]), np.linspace(-44, 44, 23)),
    "translate_x": (lambda image, by, mode: affine(image, mode, translate=[by, 0]), np.arange(-32.0, 33, 8)),
    "translate_y": (lambda image, by, mode: affine(image, mode, translate=[0, by]), np.arange(-32.0, 33, 8)),
    "rotate": (lambda image, degrees, mode: F.rotate(image, degrees, mode), np.linspace(-135, 135, 23)),
    "brightness": (lambda image, factor, _: F.adjust_brightness(image, factor), FACTORS),
    "saturation": (lambda image, factor, _: F.adjust_saturation(image, factor), FACTORS),
    "contrast": (lambda image, factor, _: F.adjust_contrast(image, factor), FACTORS),
    "sharpness": (lambda image, factor, _: F.adjust_sharpness(image, factor), FACTORS),
    "posterize": (lambda image, bits, _: F.posterize(image, int(bits)), np.arange(2.0, 9)),
    "solarize": (lambda image, threshold, _: F.solarize(image, threshold), np.linspace(0, 255, 11)),
    "autocontrast": (lambda image, _, __: F.autocontrast(image), np.zeros(1)),
    "equalize": (lambda image, _, __: F.equalize(image), np.zeros(1)),
    "hue": (lambda image, turn, _: F.adjust_hue(image, turn), np.linspace(-0.5, 0.5, 41)),
}


@pytest.fixture(scope="module")
def photograph(photographs: list[bytes]) -> Image.Image:
    return rgb(photographs[3]).resize((224, 224))


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_equal_torchvision(photograph: Image.Image, name: str, interpolation: str):
    oracle, magnitudes = ORACLES[name]
    for image in (NOISE, photograph):
        results = set()
        for magnitude in magnitudes.tolist():
            ours = OPERATIONS[name](image, magnitude, Image.Resampling[interpolation.upper()])
            theirs = oracle(image, magnitude, InterpolationMode(interpolation))
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=f"{name} {magnitude}")
            results.add(ours.tobytes())
        # The control: another magnitude gives another image (hue goes round, a photograph may have nothing beyond a
        # threshold).
        assert len(results) >= len(magnitudes) - 2


# torchvision's names are ours without "_", but for one. A magnitude of torchvision is another parameter here.
NAMES = {name.replace("_", ""): name for name in ORACLES if name != "hue"} | {"color": "saturation"}
PARAMETERS: dict[str, Callable[[float], float]] = {
    **dict.fromkeys(("shear_x", "shear_y"), lambda m: math.degrees(math.atan(m))),
    # Made in single precision, a shift of 16 pixels can be 15.999999 and be cut off to 15.
    **dict.fromkeys(("translate_x", "translate_y"), lambda m: int(m + math.copysign(1e-4, m))),
    **dict.fromkeys(("brightness", "saturation", "contrast", "sharpness"), lambda m: 1 + m),
    **dict.fromkeys(("identity", "autocontrast", "equalize"), lambda _: 0),
    "posterize": int,
    "solarize": lambda m: 255 * m,
}


def torchvisions(oracle: v2.Transform, size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> list[AugmentOp]:
    """Return the operations of `count` images, drawn by torchvision."""
    seen = []

    def note(image: Image.Image, name: str, magnitude: float, **_: object) -> Image.Image:
        ours = NAMES[name.lower()]
        seen.append(AugmentOp(ours, PARAMETERS.get(ours, float)(magnitude)))
        return image

    monkeypatch.setattr(oracle, "_apply_image_or_video_transform", note)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(count):
            oracle(Image.new("RGB", (size, size)))
    return seen


def rounded(operations: list[AugmentOp]) -> Counter[tuple[str, float]]:
    """How often which, with magnitudes to 3 digits: torchvision's are made in single precision. -0 is 0."""
    return Counter((name, round(magnitude, 3) + 0.0) for name, magnitude in operations)


Policy = Callable[[int, RandomStream], list[AugmentOp]]


def randaugment(num_ops: int, magnitude: int, bins: int) -> Policy:
    settings = {"num_ops": num_ops, "magnitude": magnitude, "num_magnitude_bins": bins}
    return partial(rand_augment, PolicySection(**settings))


def trivialaugment(bins: int) -> Policy:
    return partial(trivial_augment, PolicySection(name="trivialaugment", num_magnitude_bins=bins))


POLICIES = {
    "randaugment": (randaugment(2, 9, 31), v2.RandAugment(2, 9, 31)),
    "randaugment of other settings": (randaugment(3, 7, 11), v2.RandAugment(3, 7, 11)),
    "the strongest randaugment": (randaugment(1, 30, 31), v2.RandAugment(1, 30, 31)),
    "trivialaugment": (trivialaugment(31), v2.TrivialAugmentWide(31)),
    "trivialaugment of few magnitudes": (trivialaugment(4), v2.TrivialAugmentWide(4)),
}


@pytest.mark.parametrize(("case", "size"), [*((case, 224) for case in POLICIES), ("randaugment", 64)])
def test_operations_are_drawn_as_by_torchvision(case: str, size: int, monkeypatch: pytest.MonkeyPatch):
    policy, oracle = POLICIES[case]
    count = 8000
    drawn = [policy(size, rng_at(0, "retouch", n)) for n in range(count)]
    ours = rounded([operation for operations in drawn for operation in operations])
    theirs = rounded(torchvisions(oracle, size, count, monkeypatch))
    assert set(ours) == set(theirs)
    assert ours.total() == theirs.total()
    # Assert that two samples have one distribution: chi-square of homogeneity, below the mean plus 4 deviations.
    statistic = sum((ours[what] - theirs[what]) ** 2 / (ours[what] + theirs[what]) for what in ours)
    freedom = len(ours) - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_another_policy_is_distinguished(monkeypatch: pytest.MonkeyPatch):
    drawn = rounded([o for n in range(8000) for o in randaugment(2, 9, 31)(224, rng_at(0, n))])
    assert set(drawn) != set(rounded(torchvisions(v2.RandAugment(2, 10, 31), 224, 8000, monkeypatch)))


def test_operations_of_randaugment_do_not_depend_on_each_other():
    pairs = Counter(
        tuple(o.name for o in randaugment(2, 9, 31)(224, rng_at(0, "retouch", 0, n, 0))) for n in range(20_000)
    )
    expected, names = 20_000 / 14**2, ORACLES.keys() - {"hue"}
    statistic = sum((pairs[a, b] - expected) ** 2 / expected for a in names for b in names)
    assert abs(statistic - 195) < 4 * math.sqrt(2 * 195)


# --------------------------------------------------------------------------------------------- colour jitter


def test_factors_and_orders_equal_torchvision():
    settings = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.2, "hue": 0.1}
    count = 4000
    drawn = [dict(jitter_color(ColorJitterSection(**settings), rng_at(0, n))) for n in range(count)]
    oracle = v2.ColorJitter(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [oracle.make_params([]) for _ in range(count)]
    for name in settings:
        ours = np.sort([factors[name] for factors in drawn])
        reference = np.sort([params[f"{name}_factor"] for params in theirs])
        distance = np.abs(np.searchsorted(reference, ours) - np.arange(count)).max() / count
        assert distance < 1.95 * math.sqrt(2 / count)  # Kolmogorov and Smirnov; by chance once in a thousand times.
        low, high = getattr(oracle, name)
        assert low <= ours[0] <= ours[-1] <= high
    orders = Counter(tuple(factors) for factors in drawn)
    assert len(orders) == 24
    assert sum((n - count / 24) ** 2 / (count / 24) for n in orders.values()) < 23 + 4 * math.sqrt(46)
    # Factors are independent.
    assert abs(np.corrcoef([f["brightness"] for f in drawn], [f["contrast"] for f in drawn])[0, 1]) < 0.06


def test_without_augmentation_nothing_changes():
    assert [name for name, _ in jitter_color(ColorJitterSection(contrast=0.4), rng_at(0))] == ["contrast"]
    assert jitter_color(ColorJitterSection(), rng_at(0)) == []


# -------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_whole_of_torchvisions_training_transform_after_the_crop(interpolation: str):
    """The mirroring, then RandAugment and colour jitter of the same draws, in this order."""
    policy, jitter = PolicySection(num_ops=2, magnitude=9), ColorJitterSection(brightness=0.4, contrast=0.4, hue=0.1)
    augment = AugmentSection(policy=policy, color_jitter=jitter, interpolation=interpolation)
    for number in range(30):
        draws, own_draws = (rng_at(0, "retouch", 0, number, 0) for _ in range(2))
        image: Image.Image = F.horizontal_flip(NOISE) if number % 2 else NOISE
        for name, magnitude in [*rand_augment(policy, 64, draws), *jitter_color(jitter, draws)]:
            image = ORACLES[name][0](image, magnitude, InterpolationMode(interpolation))
        ours = retouch(augment, pixels_of(NOISE), bool(number % 2), own_draws)
        np.testing.assert_array_equal(ours.numpy(), np.asarray(image))
        assert ours.is_contiguous()


def test_without_operations_an_image_is_only_mirrored():
    pixels, augment = pixels_of(NOISE), AugmentSection(color_jitter=ColorJitterSection())
    assert torch.equal(retouch(augment, pixels, False, rng_at(0)), pixels)
    assert torch.equal(retouch(augment, pixels, True, rng_at(0)), pixels.flip(1))
