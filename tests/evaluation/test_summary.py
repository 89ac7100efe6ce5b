"""The summary of a validation, against scikit-learn."""

import json

import numpy as np
from sklearn.metrics import confusion_matrix

from seresnext.evaluation.evaluate import Evaluation
from seresnext.evaluation.summary import describe_summary, summarize

CLASSES = ["a", "b", "c", "never\x1b[31m"]


def evaluation(nan=False):
    rng = np.random.default_rng(0)
    labels = rng.choice(3, p=[0.6, 0.3, 0.1], size=200)
    logits = rng.normal(size=(200, 4)).astype(np.float32) + 2 * np.eye(4, dtype=np.float32)[labels]
    top1 = 100 * float((logits.argmax(1) == labels).mean())
    confusion = confusion_matrix(labels, logits.argmax(1), labels=range(4))
    counts = np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
    if nan:
        logits[7, 1] = np.nan
    return Evaluation({"top1": top1, "top5": 100.0, "loss": 1.0}, 200, 1.0, counts, logits, labels)


def test_the_numbers_of_a_summary():
    result = evaluation()
    predictions = result.logits.argmax(1)
    summary = summarize(result, CLASSES)
    assert sum(count for *_, count in summary["confusion"]) == (predictions != result.labels).sum()
    counts = [count for *_, count in summary["confusion"]]
    assert counts == sorted(counts, reverse=True)
    assert summary["per_class"][3] == {"class": CLASSES[3], "precision": 0, "recall": 0, "f1": 0, "support": 0}
    low, high = summary["intervals"]["top1"]
    assert low < result.metrics["top1"] < high
    assert json.loads(json.dumps(summary)) == summary


def test_a_summary_is_printed_in_plain_text():
    lines = describe_summary(summarize(evaluation(), CLASSES))
    assert [line.partition(" ")[0] for line in lines] == ["95", "calibration", "lowest", "most"]
    assert "\x1b" not in "".join(lines)


def test_logits_that_are_not_finite_have_only_intervals():
    summary = summarize(evaluation(nan=True), CLASSES)
    assert list(summary) == ["intervals"]
    assert len(describe_summary(summary)) == 1
