"""The losses against timm's and against the definitions."""

from typing import get_args

import pytest
import timm.loss
import torch
import torch.nn.functional as F

from seresnext.recipe.load import load_recipe
from seresnext.recipe.schema import LossSection
from seresnext.training.loss import LOSSES, BinaryCrossEntropy, CrossEntropy, build_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 10, generator=generator), torch.randint(10, (16,), generator=generator)


def test_the_schema_has_the_names_of_the_table():
    assert get_args(LossSection.model_fields["name"].annotation) == tuple(LOSSES)


def test_smoothing_equals_timms(batch):
    logits, labels = batch
    assert torch.allclose(CrossEntropy(0.1)(logits, labels), timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, labels))


def test_no_smoothing_gives_plain_cross_entropy(batch):
    logits, labels = batch
    assert torch.equal(CrossEntropy(0.0)(logits, labels), F.cross_entropy(logits, labels))
    assert not torch.allclose(CrossEntropy(0.1)(logits, labels), F.cross_entropy(logits, labels))


def test_soft_targets_equal_timms(batch):
    logits, labels = batch
    soft = 0.7 * F.one_hot(labels, 10) + 0.3 * F.one_hot(labels.flip(0), 10)
    assert torch.allclose(CrossEntropy(0.0)(logits, soft), timm.loss.SoftTargetCrossEntropy()(logits, soft))


def test_smoothing_of_soft_targets_mixes_in_the_uniform_distribution(batch):
    logits, labels = batch
    soft = 0.7 * F.one_hot(labels, 10) + 0.3 * F.one_hot(labels.flip(0), 10)
    expected = timm.loss.SoftTargetCrossEntropy()(logits, 0.9 * soft + 0.1 / 10)
    assert torch.allclose(CrossEntropy(0.1)(logits, soft), expected)


def test_half_precision_logits_do_not_overflow():
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert CrossEntropy()(logits, torch.tensor([1])) == 120000.0


def test_double_precision_is_kept(batch):
    logits, labels = batch
    assert CrossEntropy(0.1)(logits.double(), labels).dtype == torch.float64


# ------------------------------------------------------------------------------------------------ binary


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_of_labels_equals_timms(batch, smoothing):
    logits, labels = batch
    theirs = timm.loss.BinaryCrossEntropy(smoothing, sum_classes=True)(logits, labels)
    assert torch.allclose(BinaryCrossEntropy(smoothing)(logits, labels), theirs)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_of_mixed_targets_equals_timms(batch, threshold):
    """timm leaves smoothing of mixed targets to its mixing."""
    logits, labels = batch
    mixed = 0.85 * F.one_hot(labels, 10) + 0.15 * F.one_hot(labels.flip(0), 10)
    theirs = timm.loss.BinaryCrossEntropy(0.0, target_threshold=threshold, sum_classes=True)
    assert torch.allclose(BinaryCrossEntropy(0.0, threshold)(logits, mixed), theirs(logits, mixed))
    assert torch.allclose(BinaryCrossEntropy(0.1, threshold)(logits, mixed), theirs(logits, 0.9 * mixed + 0.01))


def test_a_threshold_decides_which_of_two_images_count(batch):
    """The control: both count below the smaller share, one above, and a loss without threshold differs."""
    logits, labels = batch
    mixed = 0.7 * F.one_hot(labels, 10) + 0.3 * F.one_hot(labels.flip(0), 10)
    values = [BinaryCrossEntropy(0.0, threshold)(logits, mixed).item() for threshold in (None, 0.2, 0.5)]
    assert len({round(value, 3) for value in values}) == 3
    assert values[2] == pytest.approx(BinaryCrossEntropy()(logits, (mixed > 0.5).float()).item())


def test_binary_cross_entropy_of_half_precision_is_finite_and_of_double_is_double(batch):
    logits, labels = batch
    assert BinaryCrossEntropy()(torch.tensor([[60000.0, 60000.0]]).half(), torch.tensor([1])) == 60000.0
    assert BinaryCrossEntropy(0.1)(logits.double(), labels).dtype == torch.float64


def test_the_loss_of_a_recipe():
    assert build_loss(load_recipe("seresnext50").recipe.loss) == CrossEntropy(0.1)
    changes = ["loss={name: bce, label_smoothing: 0, target_threshold: 0.2}", "mix.mixup=0.2"]
    assert build_loss(load_recipe("seresnext50", changes).recipe.loss) == BinaryCrossEntropy(0.0, 0.2)
