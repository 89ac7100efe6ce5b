"""Top-k counts equal timm's and a plain sort."""

import pytest
import torch
from timm.utils import accuracy as timm_accuracy

from seresnext.evaluation.metrics import count_classes, topk_correct


def correct(logits, labels, ks=(1, 5)):
    """Return the number of correct images for each k."""
    counts = [topk_correct(logits, labels, k) for k in ks]
    assert all(count.dtype == torch.int64 and count.shape == () for count in counts)
    return [int(count) for count in counts]


def by_hand(logits, labels, k):
    """Count the labels in the first k classes of each row, sorted by logit and then by class."""
    count = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if any(value != value for value in row):
            continue
        best = sorted(range(len(row)), key=lambda number: (-row[number], number))[:k]
        count += label in best
    return count


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [(torch.float32, 2), (torch.float32, 1000), (torch.float64, 5), (torch.bfloat16, 10), (torch.float16, 3)],
)
def test_equals_sorting_by_hand(dtype, classes, generator):
    logits = torch.randn(64, classes, generator=generator).to(dtype)
    labels = torch.randint(classes, (64,), generator=generator)
    ks = (1, 2, 3, 5)
    assert correct(logits, labels, ks) == [by_hand(logits, labels, k) for k in ks]


def test_equals_timm(generator):
    logits, labels = torch.randn(500, 20, generator=generator), torch.randint(20, (500,), generator=generator)
    top1, top5 = (float(percent) for percent in timm_accuracy(logits, labels, topk=(1, 5)))
    assert [count / 5 for count in correct(logits, labels)] == pytest.approx([top1, top5])


def test_lower_class_wins_ties(generator):
    logits = torch.zeros(3, 8)
    assert correct(logits, torch.tensor([0, 1, 7])) == [1, 2]
    logits = torch.randint(3, (200, 12), generator=generator).float()
    labels = torch.randint(12, (200,), generator=generator)
    assert correct(logits, labels) == [by_hand(logits, labels, 1), by_hand(logits, labels, 5)]


@pytest.mark.parametrize("where", [0, 1, slice(None)])
def test_nan_is_wrong(where):
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    label = torch.tensor([0])
    assert correct(logits, label) == [1, 1]
    logits[0, where] = float("nan")
    assert correct(logits, label) == [0, 0]
    assert correct(logits[:, :3], label) == [0, 0]


def test_infinite_logits_and_no_images():
    logits = torch.tensor([[float("inf"), 1.0], [float("-inf"), 1.0]])
    assert correct(logits, torch.tensor([0, 0]), (1,)) == [1]
    assert correct(torch.empty(0, 10), torch.empty(0, dtype=torch.int64)) == [0, 0]


def test_counts_of_classes(generator):
    """As by hand, also with ties, where the first class counts, and with NaN, which predicts no class."""
    logits = torch.randint(3, (300, 6), generator=generator).float()
    logits[::7, 2] = float("nan")
    labels = torch.randint(5, (300,), generator=generator)
    expected = torch.zeros(3, 6, dtype=torch.int64)
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        expected[1, label] += 1
        if not any(value != value for value in row):
            expected[2, row.index(max(row))] += 1
            expected[0, label] += row.index(max(row)) == label
    counts = count_classes(logits, labels)
    assert counts.tolist() == expected.tolist()
    assert int(counts[0].sum()) == correct(logits, labels, (1,))[0]
