"""The images of a run: the stream to train on, and the validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.substitute import BadImageCounter
from seresnext.recipe.schema import EvaluationSection
from seresnext.runtime import Precision


@dataclass(frozen=True)
class TrainData:
    """The training stream: `batches(start, end)` of steps, and `names(step, replica)` of the samples, for messages.

    `bad_images` counts the replaced images. The batches of `calibration_steps` more steps, which no step trains on,
    serve the recalibration of BatchNorm after the last step. 0: no recalibration.
    """

    batches: Callable[[int, int], AbstractContextManager[Iterator[DeviceBatch]]]
    names: Callable[[int, int], list[str]]
    bad_images: BadImageCounter
    calibration_steps: int = 0


@dataclass(frozen=True)
class Validation:
    """The validation: this rank's batches, the number of batches of all ranks, and the models to measure.

    `models` has `model`, and `ema` if the run has an EMA. `settings.best_by` of the model `settings.weights` decides
    which checkpoint is the best. `classes` are the names of the classes.
    """

    batches: Callable[[], AbstractContextManager[Iterator[DeviceBatch]]]
    num_batches: int
    models: dict[str, nn.Module]
    settings: EvaluationSection
    precision: Precision
    classes: Sequence[str]
