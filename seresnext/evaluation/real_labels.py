"""Reassessed labels of ImageNet's validation split ("ReaL", Beyer et al. 2020, arXiv:2006.07159)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seresnext.errors import DataError
from seresnext.evaluation.statistics import wilson_interval

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real_labels(path: Path) -> list[set[int]]:
    """Return the labels of each image of ImageNet's validation split, in the order of the image numbers.

    The file is `real.json` of the paper: a list of lists of labels 0 to 999. Raise DataError.
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
