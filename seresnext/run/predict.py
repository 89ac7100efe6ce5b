"""Classes and features of images, by a trained or published model. Results come in the order of the images."""

import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from seresnext.classifier import STAGES, Classifier, load, top_classes
from seresnext.data.batches import EvaluationImages
from seresnext.data.loading.loader import evaluation_keys, open_batches
from seresnext.data.loading.prefetch import DeviceBatch, prefetch
from seresnext.data.readers.paths import PathReader, expand
from seresnext.data.survey import describe, survey
from seresnext.distributed import choose_device
from seresnext.errors import DataError, Failure, out_of_memory
from seresnext.models.folding import fold_batchnorm
from seresnext.printable import for_terminal, shown_path
from seresnext.progress import ProgressBar, progress
from seresnext.recipe.schema import RuntimeSection
from seresnext.run.predict_output import Row, choose_format, write_features, write_rows
from seresnext.runtime import PRECISIONS, make_deterministic, tune_malloc

_MOST_WORKERS = 4
# The most images and pixels of one forward pass: 64 images of 224 x 224 on a CPU, 256 on a GPU.
_BATCH_SIZE = {"cpu": 64, "cuda": 256}
_MOST_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 24}
_TIMEOUT = RuntimeSection.model_fields["loader_timeout"].default
# Messages of the loader name keys of a recipe.
_OPTIONS = {
    "data.max_pixels": "--max-pixels",
    "data.workers": "--workers",
    "batch.micro_size": "--batch-size",
    " (runtime.loader_timeout)": "",
    "the trainer": "this command",
}


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
