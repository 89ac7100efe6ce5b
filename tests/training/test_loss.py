"""Cross-entropy with smoothing against timm's and against the definition."""

import pytest
import timm.loss
import torch
import torch.nn.functional as F

from seresnext.training.loss import cross_entropy


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 10, generator=generator), torch.randint(10, (16,), generator=generator)


def test_smoothing_equals_timms(batch):
    logits, labels = batch
    assert torch.allclose(cross_entropy(logits, labels, 0.1), timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, labels))


def test_without_smoothing_it_is_plain_cross_entropy(batch):
    logits, labels = batch
    assert torch.equal(cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels))
    assert not torch.allclose(cross_entropy(logits, labels, 0.1), F.cross_entropy(logits, labels))


def test_soft_targets_equal_timms(batch):
    logits, labels = batch
    soft = 0.7 * F.one_hot(labels, 10) + 0.3 * F.one_hot(labels.flip(0), 10)
    assert torch.allclose(cross_entropy(logits, soft, 0.0), timm.loss.SoftTargetCrossEntropy()(logits, soft))


def test_smoothing_of_soft_targets_mixes_in_the_uniform_distribution(batch):
    logits, labels = batch
    soft = 0.7 * F.one_hot(labels, 10) + 0.3 * F.one_hot(labels.flip(0), 10)
    expected = timm.loss.SoftTargetCrossEntropy()(logits, 0.9 * soft + 0.1 / 10)
    assert torch.allclose(cross_entropy(logits, soft, 0.1), expected)


def test_half_precision_logits_do_not_overflow():
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert cross_entropy(logits, torch.tensor([1]), 0.0) == 120000.0


def test_double_precision_is_kept(batch):
    logits, labels = batch
    assert cross_entropy(logits.double(), labels, 0.1).dtype == torch.float64
