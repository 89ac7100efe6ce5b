"""Evaluation equals a plain loop over images, to the bit on any number of ranks, and top-k counts equal timm's."""

import math
import sys
import threading
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from timm.utils import accuracy as timm_accuracy
from torch import nn
from torch.overrides import TorchFunctionMode

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.evaluation import METRICS, evaluate
from seresnext.evaluation.evaluate import count_classes, topk_correct
from seresnext.runtime import PRECISIONS

NUM_IMAGES, NUM_CLASSES = 23, 7


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, NUM_CLASSES)
    )
    net(torch.randn(8, 3, 6, 6) * 3)  # This updates the running statistics.
    return net


@pytest.fixture
def images():
    return torch.randn(NUM_IMAGES, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def labels():
    return torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=torch.Generator().manual_seed(2))


def batches(images, labels, size=5):
    """Yield the batches of a validation. The last batch is short."""
    for number, start in enumerate(range(0, len(images), size)):
        yield DeviceBatch(images[start : start + size], labels[start : start + size], number, 0, 0.0)


def measure(model, images, labels, size=5, **options):
    num_batches = math.ceil(len(images) / size)
    options = {"world": World(), "precision": PRECISIONS["fp32"], **options}
    return evaluate(model, batches(images, labels, size), num_batches=num_batches, **options)


@torch.no_grad()
def test_metrics_equal_a_plain_loop(model, images, labels):
    """The oracle sorts the logits of each image. The control: a mean of batch means is wrong if the last is short."""
    result = measure(model, images, labels)
    logits = torch.cat([model.eval()(image[None]) for image in images])
    ranking, loss = logits.argsort(1, descending=True), float(F.cross_entropy(logits.double(), labels))
    top1 = sum(int(label) == int(row[0]) for row, label in zip(ranking, labels, strict=True))
    top5 = sum(int(label) in row[:5].tolist() for row, label in zip(ranking, labels, strict=True))
    assert 0 < top1 < top5 < NUM_IMAGES
    assert result.metrics["top1"] == 100 * top1 / NUM_IMAGES
    assert result.metrics["top5"] == 100 * top5 / NUM_IMAGES
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert result.num_images == NUM_IMAGES
    assert result.images_per_second > 0
    means = [float(F.cross_entropy(model(b.images), b.labels)) for b in batches(images, labels)]
    assert abs(sum(means) / len(means) - loss) > 1e-3


def test_means_over_classes_are_those_of_scikit_learn(labels):
    logits = torch.randn(NUM_IMAGES, NUM_CLASSES, generator=torch.Generator().manual_seed(3))
    predictions = logits.argmax(1)
    labels = torch.where(labels < 3, predictions, labels).clamp(max=5)  # No image has class 6.
    result = measure(nn.Identity(), logits, labels)
    confusion = confusion_matrix(labels, predictions, labels=range(NUM_CLASSES))
    assert result.counts.tolist() == [confusion.diagonal().tolist(), *(confusion.sum(axis).tolist() for axis in (1, 0))]
    present = labels.unique()
    recall, f1 = (
        100 * score(labels, predictions, labels=present, average="macro", zero_division=0)
        for score in (recall_score, f1_score)
    )
    found = result.to_dict()
    assert (found["balanced_accuracy"], found["macro_f1"]) == pytest.approx((recall, f1))
    assert abs(recall - found["top1"]) > 0.1  # The control.


@pytest.mark.parametrize("size", [1, 4, NUM_IMAGES])
def test_batch_size_does_not_change_metrics(model, images, labels, size):
    results = [measure(model.double(), images.double(), labels, number) for number in (size, 5)]
    assert results[0].metrics == results[1].metrics


def test_the_model_computes_in_the_precision_of_the_recipe(images, labels):
    """A hook records the dtype of the logits."""
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(108, NUM_CLASSES)), []
    model.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    measure(model, images, labels, NUM_IMAGES)
    measure(model, images, labels, NUM_IMAGES, precision=PRECISIONS["bf16"])
    assert seen == [torch.float32, torch.bfloat16]


def test_a_new_metric_is_one_row_of_the_table(monkeypatch, model, images, labels):
    monkeypatch.setitem(METRICS, "label_mean", lambda logits, labels: labels.sum())
    result = measure(model, images, labels)
    assert list(result.metrics) == list(METRICS)
    assert result.metrics["label_mean"] == int(labels.sum()) / NUM_IMAGES
    speed = result.images_per_second
    means = {name: result.to_dict()[name] for name in ("balanced_accuracy", "macro_f1")}
    assert result.to_dict() == {**result.metrics, **means, "num_images": NUM_IMAGES, "images_per_second": speed}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_evaluation_mode_and_stays_unchanged(model, images, labels, training):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train(training)
    state = torch.get_rng_state()
    first, second = (measure(model, images, labels) for _ in range(2))
    assert model.training is training
    assert model[1].training is training
    assert first.metrics["loss"] == second.metrics["loss"]  # With dropout the losses would differ.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_training_mode_would_change_loss_and_buffers(model, images, labels):
    """The control for the test above."""
    model.eval = lambda: model.train()
    before = model[1].running_mean.clone()
    first, second = (measure(model, images, labels) for _ in range(2))
    assert first.metrics["loss"] != second.metrics["loss"]
    assert not torch.equal(model[1].running_mean, before)


def test_the_mode_is_restored_after_an_error(model, images, labels):
    with pytest.raises(RuntimeError):
        measure(model, images[:, :2], labels)
    assert model.training


@pytest.mark.parametrize(
    ("place", "value"), [((2, 2), -math.inf), ((0, 1), 5000.0), ((0, 1), 3e38), ((3, 0), math.nan)]
)
def test_large_losses_do_not_overflow_and_losses_that_are_not_finite_stay(place, value):
    labels = torch.arange(8)
    logits = 9.0 * F.one_hot(labels, 8)
    logits[place] = value
    expected = float(F.cross_entropy(logits.double(), labels))
    assert math.isfinite(expected) == math.isfinite(value)
    loss = measure(nn.Identity(), logits, labels).metrics["loss"]
    assert loss == pytest.approx(expected, nan_ok=True)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A world of threads, which share `values`. Each rank adds all tensors in the order of the ranks."""

    barrier: threading.Barrier | None = None
    values: dict = field(default_factory=dict)

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait()
        values = [self.values[rank] for rank in range(self.size)]
        self.barrier.wait()
        return values

    def sum_(self, tensor):
        return tensor.copy_(sum(self.gather(tensor.clone())))


def over_ranks(model, every, size, stop_at=None):
    """Evaluate batches on all ranks. The last rank requests a stop in round `stop_at`.

    Return the result or the DataError of each rank, and the rank of each round.
    """
    shared, results, rounds = (threading.Barrier(size, timeout=20), {}), {}, []

    def run(rank):
        asked = iter(range(len(every)))
        try:
            results[rank] = evaluate(
                model,
                iter(every[rank::size]),
                num_batches=len(every),
                world=ThreadWorld(rank, size, torch.device("cpu"), None, *shared),
                precision=PRECISIONS["fp32"],
                stop_requested=lambda: next(asked) == stop_at and rank == size - 1,
                on_round=lambda: rounds.append(rank),
                keep_logits=True,
            )
        except DataError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[rank] for rank in range(size)], rounds


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_any_number_of_ranks_gets_the_same_bits(model, images, labels, size):
    """Some of 2, 3 or 4 ranks get one of 5 batches fewer, and two of 7 get none. The last batch is short."""
    model.eval()
    expected = measure(model, images, labels)
    with torch.no_grad():
        logits = torch.cat([model(batch.images) for batch in batches(images, labels)]).numpy()
    results, rounds = over_ranks(model, list(batches(images, labels)), size)
    for result in results:
        assert (result.metrics, result.num_images) == (expected.metrics, expected.num_images)
        assert (result.counts == expected.counts).all()
        assert (result.logits == logits).all()
        assert (result.labels == labels.numpy()).all()
    assert expected.logits is None  # Unless they are asked for.
    assert len(rounds) == size * math.ceil(5 / size)


@pytest.mark.parametrize("size", [1, 2])
def test_a_stop_of_one_rank_stops_all_at_once(model, images, labels, size):
    model.eval()
    results, rounds = over_ranks(model, list(batches(images, labels)), size, stop_at=1)
    assert results == [None] * size
    assert len(rounds) == size


class SyncRecorder(TorchFunctionMode):
    """A recorder of the calls that make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.calls, self.by_round = [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.new_tensor):
            self.calls.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_the_host_waits_at_the_end_only(model, images, labels):
    with SyncRecorder() as waiting:
        measure(model, images, labels, on_round=lambda: waiting.by_round.append(list(waiting.calls)))
    assert waiting.by_round == [[]] * 5
    assert waiting.calls == ["tensor", "tolist", "tolist"]


@pytest.mark.gpu
def test_a_process_alone_waits_for_its_gpu_at_the_end_only(model, images, labels):
    """A wait between the first batch and the end of the last batch is an error."""
    device = torch.device("cuda", 0)
    every = [b._replace(images=b.images.to(device), labels=b.labels.to(device)) for b in batches(images, labels)]
    rounds = []

    def strict():
        for number, batch in enumerate(every):
            if number == 1:
                torch.cuda.set_sync_debug_mode("error")
            yield batch

    def count():
        rounds.append(1)
        if len(rounds) == len(every):
            with pytest.raises(RuntimeError, match="synchroniz"):  # The control.
                every[0].images.sum().item()
            torch.cuda.set_sync_debug_mode("default")

    options = {"num_batches": len(every), "world": World(device=device), "precision": PRECISIONS["fp32"]}
    try:
        result = evaluate(model.to(device), strict(), on_round=count, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (result.num_images, len(rounds)) == (NUM_IMAGES, len(every))


def refused(model, images, labels, size, bad):
    """Return the error of each rank for a split with unreadable images in batches of 2, and the ranks of all rounds."""
    every = [
        batch._replace(unreadable=tuple((n, f"val/{n}.jpg is empty") for n in bad if n // 2 == batch.step))
        for batch in batches(images, labels, 2)
    ]
    return over_ranks(model, every, size)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_all_unreadable_images_are_named_at_once_on_every_rank(model, images, labels, size):
    """The error comes after the last batch and lists the images of all ranks in the order of the split."""
    bad = [21, 2, 3, 8, 13]
    errors, rounds = refused(model, images, labels, size, bad)
    (message,) = {str(error) for error in errors}
    assert all(error.is_shared for error in errors)
    heading, *lines = message.splitlines()
    assert heading.startswith("5 images")
    assert [line.strip() for line in lines] == [f"val/{n}.jpg is empty" for n in sorted(bad)]
    assert sorted(rounds) == sorted([*range(size)] * math.ceil(12 / size))


def test_one_unreadable_image_is_named_by_its_own_message_and_a_long_list_is_cut(monkeypatch, model, images, labels):
    errors, _ = refused(model, images, labels, 2, [7])
    assert [str(error) for error in errors] == ["val/7.jpg is empty"] * 2
    monkeypatch.setattr(sys.modules["seresnext.evaluation.evaluate"], "_MAX_LISTED", 4)
    errors, _ = refused(model, images, labels, 3, range(NUM_IMAGES))
    heading, *lines = str(errors[0]).splitlines()
    assert heading.startswith(f"{NUM_IMAGES} images")
    assert [line.split()[0] for line in lines[:-1]] == [f"val/{n}.jpg" for n in range(4)]
    assert f"{NUM_IMAGES - 4} more" in lines[-1]


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
        count += label in sorted(range(len(row)), key=lambda number: (-row[number], number))[:k]
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
