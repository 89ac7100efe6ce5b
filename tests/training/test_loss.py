"""The losses against timm's and against the definitions."""

import pytest
import timm.loss
import torch
import torch.nn.functional as F

from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 10, generator=generator), torch.randint(10, (16,), generator=generator)


def mixed(labels, share):
    """Return the targets of images that are mixed with the images of the reversed batch."""
    return share * F.one_hot(labels, 10) + (1 - share) * F.one_hot(labels.flip(0), 10)


def test_cross_entropy_of_labels_equals_timms(batch):
    assert torch.equal(CrossEntropy()(*batch), F.cross_entropy(*batch))
    theirs = timm.loss.LabelSmoothingCrossEntropy(0.1)(*batch)
    assert torch.allclose(CrossEntropy(0.1)(*batch), theirs)
    assert not torch.allclose(CrossEntropy()(*batch), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_targets_equals_timms(batch, smoothing):
    """Smoothing mixes in the uniform distribution."""
    logits, labels = batch
    soft = mixed(labels, 0.7)
    theirs = timm.loss.SoftTargetCrossEntropy()(logits, (1 - smoothing) * soft + smoothing / 10)
    assert torch.allclose(CrossEntropy(smoothing)(logits, soft), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_of_labels_equals_timms(batch, smoothing):
    theirs = timm.loss.BinaryCrossEntropy(smoothing, sum_classes=True)(*batch)
    assert torch.allclose(BinaryCrossEntropy(smoothing)(*batch), theirs)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_of_mixed_targets_equals_timms(batch, threshold):
    """timm leaves smoothing of mixed targets to its mixing."""
    logits, labels = batch
    soft = mixed(labels, 0.85)
    theirs = timm.loss.BinaryCrossEntropy(0.0, target_threshold=threshold, sum_classes=True)
    assert torch.allclose(BinaryCrossEntropy(0.0, threshold)(logits, soft), theirs(logits, soft))
    assert torch.allclose(BinaryCrossEntropy(0.1, threshold)(logits, soft), theirs(logits, 0.9 * soft + 0.01))


def test_a_threshold_decides_which_of_two_images_count(batch):
    """The control: both count below the smaller share, one above, and a loss without threshold differs."""
    logits, labels = batch
    soft = mixed(labels, 0.7)
    values = [BinaryCrossEntropy(0.0, threshold)(logits, soft).item() for threshold in (None, 0.2, 0.5)]
    assert len({round(value, 3) for value in values}) == 3
    assert values[2] == pytest.approx(BinaryCrossEntropy()(logits, (soft > 0.5).float()).item())


@pytest.mark.parametrize("loss", [CrossEntropy, BinaryCrossEntropy])
def test_half_precision_does_not_overflow_and_double_precision_is_kept(batch, loss):
    assert loss()(torch.tensor([[60000.0, -60000.0]]).half(), torch.tensor([1])) == 120000.0
    assert loss(0.1)(batch[0].double(), batch[1]).dtype == torch.float64
