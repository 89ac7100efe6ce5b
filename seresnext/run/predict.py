"""Classes and features of images, by a trained or published model. Results keep the order of the images."""

import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seresnext.classifier import STAGES, Classifier, load, top_classes
from seresnext.data.batches import EvaluationImages
from seresnext.data.loading.loader import evaluation_keys, open_batches
from seresnext.data.loading.prefetch import DeviceBatch, prefetch
from seresnext.data.readers.paths import PathReader, expand
from seresnext.data.survey import describe, survey
from seresnext.distributed import choose_device
from seresnext.errors import DataError, Failure, UsageError, as_utf8, for_terminal, out_of_memory, printable, shown_path
from seresnext.evaluation.table import csv_of, write_parquet
from seresnext.files import check_output_file, new_file, write_output
from seresnext.models.pretrained import fold_batchnorm
from seresnext.process.packages import require_extra
from seresnext.progress import ProgressBar, progress
from seresnext.recipe.schema import RuntimeSection
from seresnext.runtime import PRECISIONS, make_deterministic, tune_malloc

_MOST_WORKERS = 4
# The most images and pixels of one forward pass: 64 images of 224 x 224 on a CPU, 256 on a GPU.
_BATCH_SIZE = {"cpu": 64, "cuda": 256}
_MOST_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 24}
_TIMEOUT = RuntimeSection.model_fields["loader_timeout"].default
_ENDINGS = {".txt": "table", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
# Messages of the loader name keys of a recipe.
_OPTIONS = {
    "data.max_pixels": "--max-pixels",
    "data.workers": "--workers",
    "batch.micro_size": "--batch-size",
    " (runtime.loader_timeout)": "",
    "the trainer": "this command",
}


class Row(NamedTuple):
    """The predictions for an image, best first (name and probability), or the error."""

    path: str
    predictions: Sequence[tuple[str, float]]
    error: str = ""


def predict(options: Namespace) -> None:
    """Write the classes of each image, and the features if asked. `options` come from the command line.

    A bad image is reported and skipped. Raises DataError at the end if there was one.
    """
    output_format = choose_format(options.output, options.format, options.features)
    reader = PathReader(expand(options.images, sys.stdin.buffer if "-" in options.images else ()))
    if not len(reader):
        raise DataError("standard input has no paths; give one path a line")
    classifier = load(options.checkpoint)
    if classifier.source != shown_path(Path(options.checkpoint)):
        print(f"weights of {classifier.source}", file=sys.stderr)
    device = choose_device(options.device)
    make_deterministic(False)
    tune_malloc(device)
    PRECISIONS["fp32"].apply_to(classifier.model, device, channels_last=True)
    classifier.model = fold_batchnorm(classifier.model)
    looked = {"given": survey(reader, classifier.decoding, finds_errors=False)}
    if warning := describe(looked, {"given": reader}):
        print(f"warning: {for_terminal(warning)}", file=sys.stderr)
    top = min(options.top, len(classifier.classes))
    rows: list[Row] = []
    features = [torch.empty(0, STAGES[options.stage])]
    try:
        with _batches(options, reader, classifier) as batches, progress("predict", len(reader), " images") as advance:
            for indices, batch in batches:
                found, of_found = _rows(indices, batch, reader, classifier, top, options.stage)
                for row in found:
                    if row.error:
                        ProgressBar.write(f"bad image: {for_terminal(row.error)}", file=sys.stderr)
                rows += found
                features += [of_found] if options.features else []
                advance(len(found))
    except DataError as error:
        raise DataError(_in_options(str(error))) from None
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise Failure(f"out of memory ({str(error).partition(chr(10))[0]}); lower --batch-size") from None
        raise
    write_rows(rows, options.output, output_format, top)
    good = [row.path for row in rows if not row.error]
    if options.features:
        array = torch.cat(features).numpy()
        write_features(good, array, options.features)
        print(f"features: {shown_path(options.features)}, {len(array)} x {array.shape[1]}", file=sys.stderr)
    if num_bad := len(rows) - len(good):
        raise DataError(f"{num_bad:,} of {len(reader):,} images are bad and have no result; repair or remove each")


@contextmanager
def _batches(
    options: Namespace, reader: PathReader, classifier: Classifier
) -> Iterator[Iterator[tuple[range, DeviceBatch]]]:
    """Yield the batches on the device of the model, with the numbers of their images."""
    preprocessing, device = classifier.preprocessing, classifier.device
    most = max(1, _MOST_PIXELS[device.type] // preprocessing.image_size**2)
    size = options.batch_size or min(_BATCH_SIZE[device.type], most)
    workers = options.workers
    if workers is None:  # A single batch is done sooner without the start of a worker.
        workers = min(_MOST_WORKERS, math.ceil(len(reader) / size) - 1, len(os.sched_getaffinity(0)))
    decoding = preprocessing.decoding(options.max_pixels or classifier.max_pixels)
    source = EvaluationImages(reader, preprocessing.crop, decoding=decoding)
    keys = evaluation_keys(len(reader), size, rank=0, world_size=1)
    with open_batches(source, keys, workers=workers, timeout=_TIMEOUT, pin_memory=device.type == "cuda") as on_host:
        on_device = prefetch(
            on_host,
            device=device,
            dtype=torch.float32,
            mean=preprocessing.mean,
            std=preprocessing.std,
            channels_last=True,
        )
        yield ((range(batch.step * size, batch.step * size + len(batch.images)), batch) for batch in on_device)


def _rows(
    indices: range, batch: DeviceBatch, reader: PathReader, classifier: Classifier, top: int, stage: str | None
) -> tuple[list[Row], Tensor]:
    """Return a row for each image, and the features of the good images (N C)."""
    errors = {index: _in_options(message) for index, message in batch.unreadable}
    logits, features = classifier.outputs(batch.images, stage)
    is_finite = logits.isfinite().all(1) & features.isfinite().all(1)
    for index, is_usable in zip(indices, is_finite.tolist(), strict=True):
        if not is_usable:
            errors.setdefault(index, f"{reader.name(index)}: the output of the model is not finite")
    rows = [
        Row(reader.name(index), () if index in errors else predictions, errors.get(index, ""))
        for index, predictions in zip(indices, top_classes(logits, classifier.classes, top), strict=True)
    ]
    return rows, features[[place for place, index in enumerate(indices) if index not in errors]]


def _in_options(message: str) -> str:
    """Return a message of the loader with the options of this command in place of keys of a recipe."""
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message


def choose_format(output: Path | None, given: str | None, features: Path | None) -> str:
    """Return the format of the predictions. Raise UsageError for files that do not fit or cannot be written."""
    if output is not None and output == features:
        raise UsageError(f"--output and --features are the same file, {shown_path(output)}; choose two files")
    if features is not None and features.suffix not in (".npy", ".parquet"):
        raise UsageError(f"--features {shown_path(features)}: the ending is not .npy or .parquet; choose another name")
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
