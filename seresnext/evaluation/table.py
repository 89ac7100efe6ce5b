"""A table of predictions: one row an image, as Parquet or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seresnext.errors import DataError
from seresnext.evaluation.statistics import Floats, Ints
from seresnext.files import NewFile
from seresnext.printable import as_utf8
from seresnext.process.packages import extra

TOP = 5
"""Predictions in a row of the table."""


@dataclass(frozen=True)
class PredictionTable:
    """Predictions of one model for N images, in the order of the split.

    images: the N names. labels: the true classes (N names). predictions: the classes with the highest probabilities (N
    lists of up to TOP names, best first). probabilities: in 0..1, as `predictions`. losses: the cross-entropies (N).
    """

    images: Sequence[str]
    labels: Sequence[str]
    predictions: Sequence[Sequence[str]]
    probabilities: Floats
    losses: Floats

    @classmethod
    def of_logits(cls, images: Sequence[str], labels: Ints, logits: Floats, classes: Sequence[str]) -> PredictionTable:
        """Return the table of logits (N K) and labels (N). Of equal logits, the lower class is first."""
        rows, k = np.arange(len(logits))[:, None], min(TOP, logits.shape[1])
        best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
        log_total = np.log(np.exp(shifted).sum(1))
        return cls(
            images,
            [classes[int(label)] for label in labels],
            [[classes[int(place)] for place in row] for row in best],
            np.exp(shifted[rows, best] - log_total[:, None]),
            log_total - shifted[rows[:, 0], labels],
        )

    @property
    def correct(self) -> np.ndarray:
        """Whether the first prediction is the true class (bool N)."""
        return np.array([label == row[0] for label, row in zip(self.labels, self.predictions, strict=True)], dtype=bool)

    def write(self, path: Path) -> None:
        """Write a CSV file if the name ends in `.csv`, otherwise a Parquet file. Raise UsageError or Failure."""
        with NewFile(path) as file:
            self._write_csv(file) if path.suffix == ".csv" else self._write_parquet(file)

    def _columns(self) -> dict[str, Any]:
        k = self.probabilities.shape[1]
        return {
            "image": list(map(as_utf8, self.images)),
            "label": list(map(as_utf8, self.labels)),
            **{f"prediction_{n + 1}": [as_utf8(row[n]) for row in self.predictions] for n in range(k)},
            **{f"probability_{n + 1}": self.probabilities[:, n] for n in range(k)},
            "loss": self.losses,
        }

    def _write_csv(self, file: BinaryIO) -> None:
        columns, text = self._columns(), io.StringIO()
        csv.writer(text).writerows([columns, *zip(*columns.values(), strict=True)])
        file.write(text.getvalue().encode())

    def _write_parquet(self, file: BinaryIO) -> None:
        with extra("report"):
            import pyarrow
            import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.table(self._columns()), file)

    @classmethod
    def read(cls, path: Path) -> PredictionTable:
        """Return the table in a file that `write` wrote. Raise DataError for another file."""
        try:
            columns = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
            names = [f"{{}}_{n + 1}" for n in range(TOP) if f"prediction_{n + 1}" in columns]
            predictions = [columns[name.format("prediction")] for name in names]
            probabilities = [np.asarray(columns[name.format("probability")], dtype=np.float64) for name in names]
            return cls(
                columns["image"],
                columns["label"],
                list(zip(*predictions, strict=True)),
                np.stack(probabilities, axis=1),
                np.asarray(columns["loss"], dtype=np.float64),
            )
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror or error}); give a table of predictions") from None
        except (KeyError, ValueError, UnicodeDecodeError, csv.Error):
            raise DataError(f"{path} is no table of predictions; write one with `seresnext validate --table`") from None


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows: Iterator[list[str]] = csv.reader(file)
        header = next(rows, [])
        columns = list(zip(*rows, strict=True))
    return dict(zip(header, map(list, columns), strict=True))


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    with extra("report"):
        import pyarrow.parquet
    with path.open("rb") as file:
        return pyarrow.parquet.read_table(file).to_pydict()
