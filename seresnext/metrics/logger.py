"""The logger of a run: every event goes to all sinks and to the console. Rank 0 logs, other ranks are silent.

The first training images become a picture, with their labels, as the network sees the images.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from seresnext.distributed import World
from seresnext.errors import printable
from seresnext.metrics.console import Console, table_of_classes
from seresnext.metrics.jsonlines import JsonLines
from seresnext.metrics.sink import FIRST_BATCH, RunStart, Sink
from seresnext.metrics.status import StatusFile
from seresnext.metrics.tensorboard import TensorBoard
from seresnext.metrics.tracker import Tracker
from seresnext.progress import ProgressBar
from seresnext.recipe import Recipe, to_values

_ALWAYS = ("jsonl", "status")
# The functions that open each sink at the start of a run: those of every run, then those of `logging.sinks`.
SINKS: dict[str, Callable[[RunStart], Sink]] = {
    "jsonl": JsonLines,
    "status": StatusFile,
    "tensorboard": TensorBoard,
    "wandb": partial(Tracker, "wandb"),
    "mlflow": partial(Tracker, "mlflow"),
}


class RunLogger:
    """Logger of events. `bar` is the bar of the run, which shows the numbers of a train event while the bar is drawn.

    The console is not a sink: the console also shows bars, the remaining time and texts that replace an event.

    folder: the run folder; without a folder (a dry run) the logger only prints.
    recipe: names the sinks. With 5 classes or fewer the console omits top-5 accuracy, which is then always 100 %. The
    console omits macro F1 unless macro F1 chooses the best checkpoint.
    classes: the names of the classes, for the picture of the first batch.
    """

    def __init__(
        self, folder: Path | None, console: Console, world: World, recipe: Recipe, classes: Sequence[str] = ()
    ) -> None:
        self.console = console
        self._recipe, self._classes = recipe, classes
        self._hidden = ["top5"] if recipe.model.num_classes <= 5 else []
        self._hidden += ["macro_f1"] if recipe.evaluation.best_by != "macro_f1" else []
        self.bar = ProgressBar(disable=True)
        self._sinks: list[Sink] = []
        self._folder = folder if world.is_first else None

    def open(self, step: int, evaluated: int, logged: int = 0) -> None:
        """Open the sinks of a run that starts after `step` completed steps. `RunStart` explains the arguments.

        Raises UsageError if a file of the run folder cannot be used.
        """
        if self._folder is not None:
            start = RunStart(self._folder, step, evaluated, logged, self.console.print, to_values(self._recipe))
            self._sinks = [SINKS[name](start) for name in dict.fromkeys((*_ALWAYS, *self._recipe.logging.sinks))]

    def write(
        self,
        event: Mapping[str, Any],
        seconds_left: float | None = None,
        text: str | None = None,
        only_log: bool = False,
    ) -> None:
        """Send an event to all sinks, and print the event with the remaining time, or `text` if given.

        `only_log`: the text goes to the log file alone. docs/logging.md lists the fields of events.
        """
        for sink in self._sinks:
            sink.write(event)
        if text is None:
            shown = {name: value for name, value in event.items() if name not in self._hidden}
            self.console.print_event(shown, seconds_left, self.bar)
        else:
            (self.console.log if only_log else self.console.print)(text)
        if classes := event.get("per_class"):
            self.console.print(table_of_classes(classes))
        if event["event"] == "validate" and not math.isfinite(event["loss"]):
            self.console.print(
                f"warning: the validation loss after step {event['step']} is {event['loss']} ({event['weights']} "
                "weights). The usual causes are a learning rate that is too high (optimizer.lr), too little warm-up "
                "(schedule.warmup) or fp16"
            )

    def draw_first(self, batches: Iterator[Any], mix: Callable[..., tuple[Tensor, Tensor]] | None) -> Iterator[Any]:
        """Draw the first batch, mixed as by the training step, for all sinks. Return the same batches."""
        if self._folder is None:
            return batches
        first, data = next(batches), self._recipe.data
        images, labels = first.images, first.labels
        if mix:
            images, labels = mix(images, labels, step=first.step, replica=first.replica)
        try:
            draw_batch(images, labels, self._classes, data.mean, data.std, self._folder / FIRST_BATCH)
            for sink in self._sinks:
                sink.write({"event": "picture", "step": 0, "epoch": 0.0, "file": FIRST_BATCH})
        except OSError as error:
            self.console.print(
                f"warning: {self._folder / FIRST_BATCH} cannot be written ({error.strerror}); training continues"
            )
        return itertools.chain([first], batches)

    def close(self) -> None:
        """Close the sinks. Call this after the end of the run is in `status.json`, outside of collectives."""
        for sink in self._sinks:
            sink.close()


_COLUMNS, _ROWS, _SIDE, _TEXT, _GAP = 8, 4, 160, 36, 8
_LONGEST = 26  # characters of a line


def draw_batch(
    images: Tensor, labels: Tensor, names: Sequence[str], mean: Sequence[float], std: Sequence[float], path: Path
) -> None:
    """Write the first images of a batch as a PNG: one grid, the class under each image. Raises OSError.

    `images` N C H W are normalised with `mean` and `std`. `labels` are N, or N K for mixed images, whose two largest
    shares are shown.
    """
    count = min(len(images), _COLUMNS * _ROWS)
    columns = min(count, _COLUMNS)
    size = (columns * (_SIDE + _GAP) + _GAP, -(-count // columns) * (_SIDE + _TEXT + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (std, mean))
    pixels = images[:count].detach().float().cpu() * scale + shift
    pixels = (pixels * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    for place, (array, label) in enumerate(zip(pixels, labels[:count].cpu(), strict=True)):
        x = _GAP + place % columns * (_SIDE + _GAP)
        y = _GAP + place // columns * (_SIDE + _TEXT + _GAP)
        image = Image.fromarray(array if array.shape[2] == 3 else np.repeat(array[..., :1], 3, axis=2))
        sheet.paste(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if image.width < 80 else None), (x, y))
        pen.text((x, y + _SIDE + 2), _caption(label, names), "black", font)
    sheet.save(path)


def _caption(label: Tensor, names: Sequence[str]) -> str:
    if label.ndim == 0:
        return printable(names[int(label)], _LONGEST)
    shares, classes = label.topk(min(2, len(label)))
    pairs = [(float(share), int(number)) for share, number in zip(shares, classes, strict=True) if share > 0]
    return "\n".join(f"{100 * share:.0f} % {printable(names[number], _LONGEST - 6)}" for share, number in pairs)
