"""A table of predictions: one row an image, as Parquet or CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seresnext.errors import DataError, as_utf8
from seresnext.evaluation.statistics import Floats, Ints
from seresnext.files import new_file, write_output
from seresnext.process.packages import extra

_TOP = 5  # predictions of an image
_NUMBERS = ("probability", "loss")  # the beginnings of the names of columns with numbers

Table = Mapping[str, Sequence[Any]]
"""Columns by name, with a row for each of N images in the order of the split.

`image` and `label` are the names of the image and of the true class. `prediction_1` to `prediction_5` are the classes
with the highest probabilities, best first, `probability_1` to `probability_5` their probabilities in 0..1, and `loss`
is the cross-entropy.
"""


def build_table(images: Sequence[str], labels: Ints, logits: Floats, classes: Sequence[str]) -> Table:
    """Return the table of logits (N K) and labels (N). Of equal logits, the lower class is first."""
    rows, k = np.arange(len(logits))[:, None], min(_TOP, logits.shape[1])
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(1))
    probabilities = np.exp(shifted[rows, best] - log_total[:, None])
    names = np.array([as_utf8(name) for name in classes], object)
    return {
        "image": list(map(as_utf8, images)),
        "label": names[labels].tolist(),
        **{f"prediction_{n + 1}": names[best[:, n]].tolist() for n in range(k)},
        **{f"probability_{n + 1}": probabilities[:, n].tolist() for n in range(k)},
        "loss": (log_total - shifted[rows[:, 0], labels]).tolist(),
    }


def write_table(table: Table, path: Path) -> None:
    """Write a CSV file if the name ends in `.csv`, otherwise a Parquet file. Raise UsageError or Failure."""
    if path.suffix == ".csv":
        write_output(path, csv_of(table))
    else:
        write_parquet(table, path)


def csv_of(columns: Table) -> str:
    """Return columns of texts and numbers as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *zip(*columns.values(), strict=True)])
    return text.getvalue()


def write_parquet(columns: Mapping[str, Any], path: Path) -> None:
    """Write texts, numbers (`probability_...` and `loss`) and arrays (float32 N C) as columns of a new Parquet file."""
    with extra("report"):
        import pyarrow
        import pyarrow.parquet

    def column(name: str, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        return pyarrow.array(values, pyarrow.float64() if name.startswith(_NUMBERS) else pyarrow.string())

    table = pyarrow.table({name: column(name, values) for name, values in columns.items()})
    with new_file(path) as file:
        pyarrow.parquet.write_table(table, file)


def read_table(path: Path) -> Table:
    """Return the table in a file that `write_table` wrote. Raise DataError for another file."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            table = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
            table |= {name: list(map(float, table[name])) for name in header if name.startswith(_NUMBERS)}
        else:
            with extra("report"):
                import pyarrow.parquet
            with path.open("rb") as file:
                table = pyarrow.parquet.read_table(file).to_pydict()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give a table of predictions") from None
    except (ValueError, csv.Error):
        table = {}
    texts = [text for name in ("image", "label", "prediction_1") for text in table.get(name, [None])]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path} is no table of predictions; write one with `seresnext validate --table`")
    return table
