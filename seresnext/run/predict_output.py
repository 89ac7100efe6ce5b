"""The files of predictions and features."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seresnext.errors import UsageError
from seresnext.evaluation.table import csv_of, write_parquet
from seresnext.files import check_output_file, new_file, write_output
from seresnext.printable import as_utf8, printable, shown_path
from seresnext.process.packages import require_extra

_ENDINGS = {".txt": "table", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}


class Row(NamedTuple):
    """The predictions for an image, best first (name and probability), or the error."""

    path: str
    predictions: Sequence[tuple[str, float]]
    error: str = ""


def choose_format(output: Path | None, given: str | None, features: Path | None) -> str:
    """Return the format of the predictions. Raise UsageError for files that do not fit or cannot be written."""
    if output is not None and output == features:
        raise UsageError(f"--output and --features are the same file, {shown_path(output)}; choose two files")
    if features is not None and features.suffix not in (".npy", ".parquet"):
        raise UsageError(
            f"--features {shown_path(features)}: the ending is neither .npy nor .parquet; choose another name"
        )
    chosen = given or (_ENDINGS.get(output.suffix) if output else "table")
    if chosen is None:
        raise UsageError(f"--output {output}: the ending is none of {', '.join(_ENDINGS)}; add --format")
    if chosen == "parquet" and output is None:
        raise UsageError("a Parquet file cannot be printed; name the file with --output FILE")
    for path, option in ((output, "--output"), (features, "--features")):
        if path:
            check_output_file(path, option)
    if chosen == "parquet" or (features and features.suffix == ".parquet"):
        require_extra("report", "pyarrow")
    return chosen


def write_rows(rows: Sequence[Row], path: Path | None, output_format: str, top: int) -> None:
    """Write rows to a file, or to standard output without a path. Raise Failure."""
    if output_format == "parquet":
        assert path is not None
        write_parquet(_columns(rows, top), path)
    elif path:
        write_output(path, as_utf8(_TEXTS[output_format](rows, top)))
    else:
        text = _TEXTS[output_format](rows, top)
        if sys.stdout.isatty():  # A name in a CSV row could change the settings of a terminal.
            text = "\n".join(printable(line, longest=1_000_000) for line in text.split("\n"))
        sys.stdout.write(text)


def write_features(paths: Sequence[str], features: np.ndarray, path: Path) -> None:
    """Write features (float32 N C) to a file. Raise Failure.

    The file is Parquet with the paths if the name ends in `.parquet`, otherwise NumPy's format, without the paths.
    """
    if path.suffix == ".parquet":
        write_parquet({"path": list(map(as_utf8, paths)), "features": features}, path)
        return
    with new_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": features.shape}
        np.lib.format.write_array_header_1_0(file, header)  # pyright: ignore[reportArgumentType]
        if features.size:
            file.write(features.data)


def _columns(rows: Sequence[Row], top: int) -> dict[str, list[Any]]:
    """Return rows as columns, with None in place of the predictions of a bad image."""
    filled = [[*row.predictions, *[(None, None)] * (top - len(row.predictions))] for row in rows]
    return {
        "path": [as_utf8(row.path) for row in rows],
        **{f"prediction_{n + 1}": [row[n][0] and as_utf8(row[n][0]) for row in filled] for n in range(top)},
        **{f"probability_{n + 1}": [row[n][1] for row in filled] for n in range(top)},
        "error": [as_utf8(row.error) or None for row in rows],
    }


def _table(rows: Sequence[Row], top: int) -> str:
    lines = []
    for row in rows:
        lines.append(printable(row.path, longest=5000))
        lines += [f"  {100 * probability:6.2f} %  {printable(name)}" for name, probability in row.predictions]
        lines += ["  bad image, no result"] if row.error else []
    return "".join(f"{line}\n" for line in lines)


def _json_lines(rows: Sequence[Row], top: int) -> str:
    lines = []
    for row in rows:
        predictions = [{"class": name, "probability": probability} for name, probability in row.predictions]
        lines.append({"path": row.path, **({"error": row.error} if row.error else {"predictions": predictions})})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


_TEXTS = {"table": _table, "jsonl": _json_lines, "csv": lambda rows, top: csv_of(_columns(rows, top))}
