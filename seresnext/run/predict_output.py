"""The files of predictions and features, written row by row and published under their names when complete."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seresnext.errors import UsageError
from seresnext.files import NewFile
from seresnext.printable import as_utf8, printable, shown_path
from seresnext.process.packages import extra

_ENDINGS = {".txt": "table", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_GROUP = 4096  # Rows of a row group of a Parquet file. One group is in memory.


class Row(NamedTuple):
    """The predictions for an image, best first (name and probability), or the error."""

    path: str
    predictions: Sequence[tuple[str, float]]
    error: str = ""


WriteRows = Callable[[Sequence[Row]], None]
WriteFeatures = Callable[[Sequence[str], np.ndarray], None]


def choose_format(output: Path | None, given: str | None, features: Path | None) -> str:
    """Return the format of the predictions. Raise UsageError for files that do not fit."""
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
    return chosen


@contextmanager
def open_rows(path: Path | None, output_format: str, top: int) -> Iterator[WriteRows]:
    """Yield a function that writes rows to a new file, or to standard output without a path."""
    if output_format == "parquet":
        assert path is not None
        types = {name: float if name.startswith("probability") else str for name in _columns([], top)}
        with _open_parquet(path, types) as write_columns:
            yield lambda rows: write_columns(_columns(rows, top))
    else:
        with NewFile(path) if path else nullcontext() as file:

            def write(text: str) -> None:
                file.write(as_utf8(text).encode()) if file else _print(text)

            write(",".join(_columns([], top)) + "\n" if output_format == "csv" else "")
            yield lambda rows: write(_LINES[output_format](rows, top))


@contextmanager
def open_features(path: Path | None, width: int) -> Iterator[WriteFeatures]:
    """Yield a function that writes paths and features (N `width`) to a new file; without a path, nothing.

    The file is Parquet if the name ends in `.parquet`, otherwise NumPy's format, without the paths.
    """
    if path is None:
        yield lambda paths, features: None
    elif path.suffix == ".parquet":
        with _open_parquet(path, {"path": str, "features": width}) as write_columns:
            yield lambda paths, features: write_columns({"path": list(map(as_utf8, paths)), "features": features})
    else:
        with NewFile(path) as file:
            count = 0

            def write(paths: Sequence[str], features: np.ndarray) -> None:
                nonlocal count
                count += len(features)
                file.write(np.ascontiguousarray(features, np.float32).data)

            _write_header(file, 0, width)
            yield write
            file.seek(0)
            _write_header(file, count, width)  # NumPy leaves room for a larger number of rows.


@contextmanager
def _open_parquet(path: Path, types: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends columns to a new Parquet file.

    The type of a column is `str` or `float` for lists, or the number of columns of a float32 array.
    """
    with extra("report"):
        import pyarrow
        import pyarrow.parquet

    known = {str: pyarrow.string(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, known.get(n) or pyarrow.list_(pyarrow.float32(), n)) for name, n in types.items()])
    pending: list[Any] = []

    def column(name: str, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return pyarrow.FixedSizeListArray.from_arrays(values.ravel(), types[name])
        return pyarrow.array(values, schema.field(name).type)

    with NewFile(path) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            if pending:
                writer.write_table(pyarrow.concat_tables(pending))
                pending.clear()

        def write(columns: dict[str, Any]) -> None:
            pending.append(pyarrow.table([column(*item) for item in columns.items()], schema=schema))
            if sum(map(len, pending)) >= _GROUP:
                flush()

        yield write
        flush()


def _columns(rows: Sequence[Row], top: int) -> dict[str, list[Any]]:
    """Return rows as columns, with None in place of the predictions of a bad image."""
    filled = [[*row.predictions, *[(None, None)] * (top - len(row.predictions))] for row in rows]
    return {
        "path": [as_utf8(row.path) for row in rows],
        **{f"prediction_{n + 1}": [row[n][0] and as_utf8(row[n][0]) for row in filled] for n in range(top)},
        **{f"probability_{n + 1}": [row[n][1] for row in filled] for n in range(top)},
        "error": [as_utf8(row.error) or None for row in rows],
    }


def _table_lines(rows: Sequence[Row], top: int) -> str:
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


def _csv_lines(rows: Sequence[Row], top: int) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*_columns(rows, top).values(), strict=True))
    return text.getvalue()


_LINES = {"table": _table_lines, "jsonl": _json_lines, "csv": _csv_lines}


def _print(text: str) -> None:
    if sys.stdout.isatty():  # A name in a CSV row could change the settings of a terminal.
        text = "\n".join(printable(line, longest=1_000_000) for line in text.split("\n"))
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_header(file: io.FileIO, count: int, width: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(file, header)  # pyright: ignore[reportArgumentType]
