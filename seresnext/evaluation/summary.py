"""The answers of a validation: how certain the accuracy is, which classes fail, whether a confidence can be trusted."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seresnext.errors import DataError, printable
from seresnext.evaluation.evaluate import Evaluation
from seresnext.evaluation.statistics import calibrate, confusion_matrix, describe_classes, wilson_interval

_LISTED = 3
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def summarize(result: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """Return the statistics of an evaluation with logits, as in the JSON file of a validation.

    `classes` are the names of the columns of the logits. Without finite logits only the intervals are there.

    - `intervals`: the 95 % Wilson interval of `top1` and `top5`, in percent
    - `per_class`: `class`, `precision`, `recall`, `f1` (percent) and `support` of each class
    - `confusion`: true class, predicted class and images of each wrong pair, the most frequent first
    - `calibration`: as `calibrate` returns
    """
    count = result.num_images
    correct = {name: round(result.metrics[name] * count / 100) for name in ("top1", "top5")}
    summary: dict[str, Any] = {"intervals": {name: list(wilson_interval(n, count)) for name, n in correct.items()}}
    logits, labels = result.logits, result.labels
    if logits is None or labels is None or not np.isfinite(logits).all():
        return summary
    summary["per_class"] = describe_classes(result.counts, classes)
    confusion = confusion_matrix(labels, logits.argmax(1), len(classes))
    np.fill_diagonal(confusion, 0)
    places = np.argwhere(confusion).tolist()
    pairs = [[classes[true], classes[predicted], int(confusion[true, predicted])] for true, predicted in places]
    summary["confusion"] = sorted(pairs, key=lambda pair: -pair[2])
    if calibration := calibrate(logits, labels):
        summary["calibration"] = calibration
    return summary


def describe_summary(summary: Mapping[str, Any]) -> list[str]:
    """Return a summary as lines for people."""
    low, high = summary["intervals"]["top1"]
    lines = [f"95 % interval of top-1: {low:.2f} to {high:.2f} %"]
    if calibration := summary.get("calibration"):
        lines.append(
            f"calibration error {calibration['error']:.2f} %, {calibration['error_after']:.2f} % with temperature "
            f"{calibration['temperature']:.3f}"
        )
    if pairs := summary.get("confusion"):
        weak = sorted((row for row in summary["per_class"] if row["support"]), key=lambda row: row["recall"])[:_LISTED]
        listing = ", ".join(f"{printable(row['class'])} {row['recall']:.1f} % of {row['support']}" for row in weak)
        lines.append(f"lowest recall: {listing}")
        listing = ", ".join(f"{printable(true)} as {printable(other)} ({n})" for true, other, n in pairs[:_LISTED])
        lines.append(f"most confused: {listing}")
    if real := summary.get("real_labels"):
        lines.append(
            f"reassessed labels: top-1 {real['top1']:.3f} % of {real['num_images']:,} images "
            f"(95 % interval {real['interval'][0]:.2f} to {real['interval'][1]:.2f} %)"
        )
    return lines


def read_real_labels(path: Path) -> list[set[int]]:
    """Return the reassessed labels of ImageNet's validation split, in the order of the image numbers. Raise DataError.

    The file is `real.json` of Beyer et al. 2020 (arXiv:2006.07159): a list of lists of labels 0 to 999.
    """
    try:
        found = json.loads(path.read_text())
        assert all(isinstance(label, int) and 0 <= label < 1000 for labels in found for label in labels)
        return [set(labels) for labels in found]
    except OSError as error:
        raise DataError(f"--real-labels {path} cannot be read ({error.strerror}); give the file real.json") from None
    except (ValueError, TypeError, AssertionError):
        raise DataError(f"--real-labels {path} is no list of lists of labels 0 to 999; give real.json") from None


def real_accuracy(names: Sequence[str], predictions: Sequence[int], real: Sequence[set[int]]) -> dict[str, Any]:
    """Return the share of images whose prediction is one of the reassessed labels (percent), interval and images.

    Images without a reassessed label do not count, as in the paper. Raise DataError for a name without a number.
    """
    right = []
    for name, prediction in zip(names, predictions, strict=True):
        match = _NUMBER.search(name)
        number = int(match[1]) if match else 0
        if not 0 < number <= len(real):
            raise DataError(f"{name} is none of the {len(real):,} images of --real-labels; give ImageNet's val split")
        if real[number - 1]:
            right.append(prediction in real[number - 1])
    if not right:
        raise DataError("no image of the split has a label in --real-labels; give the file real.json")
    return {
        "top1": 100 * float(np.mean(right)),
        "interval": list(wilson_interval(sum(right), len(right))),
        "num_images": len(right),
    }
