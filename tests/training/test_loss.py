"""The losses against timm's and against the definitions."""

import numpy as np
import pytest
import timm.loss
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from seresnext.data.synthetic import SyntheticReader
from seresnext.recipe.schema import LossSection, Recipe
from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy, build_class_weights, build_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 10, generator=generator), torch.randint(10, (16,), generator=generator)


def mixed(labels, share):
    """Return the targets of images that are mixed with the images of the reversed batch."""
    return share * F.one_hot(labels, 10) + (1 - share) * F.one_hot(labels.flip(0), 10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_labels_equal_timms(batch, smoothing):
    kind = timm.loss.LabelSmoothingCrossEntropy(smoothing) if smoothing else torch.nn.CrossEntropyLoss()
    assert torch.allclose(CrossEntropy(smoothing)(*batch), kind(*batch))
    assert not torch.allclose(CrossEntropy(0.2)(*batch), kind(*batch))
    theirs = timm.loss.BinaryCrossEntropy(smoothing, sum_classes=True)(*batch)
    assert torch.allclose(BinaryCrossEntropy(smoothing)(*batch), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_losses_of_mixed_targets_equal_timms(batch, smoothing, threshold):
    """Smoothing mixes in the uniform distribution. timm leaves the smoothing of mixed targets to its mixing."""
    logits, labels = batch
    soft = mixed(labels, 0.85)
    smoothed = (1 - smoothing) * soft + smoothing / 10
    theirs = timm.loss.SoftTargetCrossEntropy()(logits, smoothed)
    assert torch.allclose(CrossEntropy(smoothing)(logits, soft), theirs)
    theirs = timm.loss.BinaryCrossEntropy(0.0, target_threshold=threshold, sum_classes=True)
    assert torch.allclose(BinaryCrossEntropy(smoothing, threshold)(logits, soft), theirs(logits, smoothed))


# ---------------------------------------------------------------------------------------------------- class weights

WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 1.0, 0.5, 2.0, 1.0, 1.0, 4.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs_sum(batch, smoothing):
    """torch divides by the sum of the weights for labels, and by the images for soft targets."""
    logits, labels = batch
    weights, loss = WEIGHTS.float(), CrossEntropy(smoothing, WEIGHTS)
    theirs = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    assert torch.allclose(loss(logits, labels), theirs * weights[labels].sum() / 16)
    soft = mixed(labels, 0.7)
    assert torch.allclose(loss(logits, soft), F.cross_entropy(logits, soft, weights, label_smoothing=smoothing))
    assert torch.allclose(loss(logits, F.one_hot(labels, 10).float()), loss(logits, labels))
    assert not torch.allclose(loss(logits, labels), CrossEntropy(smoothing)(logits, labels))  # The control.


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_a_class_of_weight_two_counts_as_twice_the_images(batch, name):
    """The gradient is the gradient of the images with copies, for any division into micro-batches."""
    logits, labels = batch
    weights = torch.where(torch.arange(10) == labels[0], 2.0, 1.0)
    section = LossSection(name=name, label_smoothing=0.0)
    copies = torch.cat([torch.arange(16), (labels == labels[0]).nonzero()[:, 0]])
    assert len(copies) > 16

    def gradient(loss, parts, index=slice(None)):
        leaf = logits.clone().requires_grad_()
        chosen, chosen_labels = leaf[index], labels[index]
        for part in torch.arange(len(chosen_labels)).split(parts):
            (loss(chosen[part], chosen_labels[part]) * len(part) / 16).backward(retain_graph=True)
        return leaf.grad

    expected = gradient(build_loss(section), 32, copies)
    for parts in (16, 4, 1):
        assert torch.allclose(gradient(build_loss(section, weights), parts), expected, atol=1e-6)
    assert not torch.allclose(gradient(build_loss(section), 16), expected, atol=1e-3)  # The control.


def test_weights_of_a_mixed_image_are_the_mean_by_share(batch):
    """For binary cross-entropy by the shares before the threshold."""
    logits, labels = batch
    soft = mixed(labels, 0.7)
    share = 0.7 * WEIGHTS[labels] + 0.3 * WEIGHTS[labels.flip(0)]
    terms = F.binary_cross_entropy_with_logits(logits, (soft > 0.2).float(), reduction="none").sum(1)
    assert torch.allclose(BinaryCrossEntropy(0.0, 0.2, WEIGHTS)(logits, soft), (share * terms).mean().float())


def recipe(weights, **data):
    values = {"model": {"name": "seresnext26"}, "loss": {"class_weights": weights}, "data": data}
    return Recipe.model_validate(values)


LABELS = np.repeat([0, 1, 3], [70, 20, 10])


def weights_of(section):
    reader = SyntheticReader(len(LABELS), 4)
    reader.classes, reader.labels = tuple("abcd"), LABELS
    return build_class_weights(section, reader, torch.device("cpu"))


def test_balanced_weights_are_those_of_scikit_learn():
    found = weights_of(recipe("balanced"))
    expected = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS)
    assert found[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert float(found[LABELS].mean()) == pytest.approx(1)
    assert weights_of(recipe(None)) is None


@pytest.mark.parametrize(("sampling", "shown"), [("shuffle", [70, 20, 0, 10]), ("balanced", [1, 1, 0, 1])])
def test_named_weights_have_a_mean_of_one_over_the_images_that_are_shown(sampling, shown):
    found = weights_of(recipe({"d": 6, "b": 3}, sampling=sampling)).numpy()
    assert (found / found[0]).tolist() == pytest.approx([1, 3, 1, 6])
    assert np.average(found, weights=shown) == pytest.approx(1)


@pytest.mark.parametrize("loss", [CrossEntropy, BinaryCrossEntropy])
def test_half_precision_does_not_overflow_and_double_precision_is_kept(batch, loss):
    assert loss()(torch.tensor([[60000.0, -60000.0]]).half(), torch.tensor([1])) == 120000.0
    assert loss(0.1)(batch[0].double(), batch[1]).dtype == torch.float64
