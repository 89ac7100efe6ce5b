"""A trainer whose steps, batches, saver and logger are stand-ins that record the calls.

The images of the model are the logits.
"""

import io
import math
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from seresnext.checkpoint.store import SaveError
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.substitute import BadImageCounter, ReplacedImage
from seresnext.distributed import World
from seresnext.progress import ProgressBar
from seresnext.recipe.schema import Recipe
from seresnext.training.plan import Plan, Progress
from seresnext.training.result import StepResult
from seresnext.training.schedule import Schedule
from seresnext.training.trainer import Trainer

CLASSES = 4


class Steps:
    """Steps with the losses `loss_of(step)` of two replicas. Results are read one at a time, in order.

    Steps with a loss or gradient that is not finite are skipped. `scaled`: the scale of fp16 is above 1. In step s, s
    of the 6 images are correct.
    """

    mix, timer, image_size = None, None, 224

    def __init__(self, log, loss_of, grad_norm_of, stops_at, scaled):
        self._log, self._stops_at, self._scale = log, stops_at, 2.0 if scaled else 1.0
        self._loss_of, self._grad_norm_of = loss_of, grad_norm_of

    def __call__(self, batches, *, step, lr, stop, save_failed=False, bad_images=0):
        assert next(batches) == step
        assert lr == 0.5**step
        self._log.append(("step", step))
        flags = bool(stop or step == self._stops_at), bool(save_failed), int(bad_images)
        return SimpleNamespace(result=lambda: self._result(step, *flags))

    def _result(self, step, stop, save_failed, bad_images):
        self._log.append(("read", step))
        losses, grad_norm = self._loss_of(step), self._grad_norm_of(step)
        skipped = not all(map(math.isfinite, (*losses, grad_norm)))
        flags = {"skipped": skipped, "loss_scale": self._scale, "bad_images": bad_images, "correct": min(step, 6)}
        return StepResult(step, losses, grad_norm, 0.125, stop, save_failed, **flags)


class Saver:
    """Writes end at once. Writes of the steps in `fails_at` fail, and the run continues."""

    def __init__(self, log, fails_at=()):
        self._log, self._fails_at = log, set(fails_at)
        self.has_failed = self.is_entered = False
        self.saved = []

    def __enter__(self):
        self.is_entered = True

    def __exit__(self, *_):
        self.is_entered = False

    def save(self, step, progress):
        assert self.is_entered
        self._log.append(("save", step))
        self.saved.append(progress)
        self.has_failed = step in self._fails_at

    def wait(self):
        failed, self.has_failed = self.has_failed, False
        return not failed

    def finish(self):
        self._log.append(("finish", self.saved[-1]["step"] if self.saved else 0))
        if self.has_failed:
            raise SaveError("the last one")


class RunLogger:
    def __init__(self, log):
        self._log, self.console = log, SimpleNamespace(bar=self._bar)
        self.events, self.texts, self.bars = [], [], []

    def write(self, event, seconds_left=None, text=None, only_log=False):
        if event.get("kind") in ("data_starvation", "throughput_drop"):
            return  # The stand-ins take no time and claim to wait.
        self._log.append((event["event"], event["step"]))
        self.events.append(event)
        self.texts += [text] if text else []

    def draw_first(self, batches, mix):
        self._log.append(("draw", 0))
        return batches

    def _bar(self, label, total, done=0):
        self.bars.append((label, done, total))
        return ProgressBar(initial=done, file=io.StringIO())


class Logits(nn.Module):
    """A model that returns the images as logits, and counts the calls."""

    calls = 0

    def forward(self, images):
        self.calls += 1
        return images


class Run:
    """A trainer with stand-ins, and one log. `right` gives the number of correct images of 8, by step."""

    def __init__(
        self,
        total=8,
        log_every=2,
        evaluate_every=4,
        save_every=4,
        progress=None,
        right=lambda step: min(step, 8),
        loss_of=lambda step: (float(step), float(step) + 1),
        grad_norm_of=lambda step: step / 10,
        stops_at=None,
        scaled=False,
        weights=("model",),
        chosen="model",
        best_by="top1",
        calibrated=False,
        saves_fail_at=(),
        bad_at=(),
        bad_allowed=9,
        stop_after_skips=3,
        **plan,
    ):
        self.log, self.starts, self.right, self.bad_at = [], [], right, bad_at
        self.bad_images = BadImageCounter(
            bad_allowed, World(), lambda text: self.log.append(("warned", text.split()[1]))
        )
        self.saver, self.logger = Saver(self.log, saves_fail_at), RunLogger(self.log)
        self.progress = progress or Progress()
        self.models = {name: Logits() for name in weights}
        self.stop = SimpleNamespace(requested=False)
        evaluation = {"weights": chosen, "best_by": best_by, "recalibrate": {"images": 17} if calibrated else None}
        values = {"model": {"name": "seresnext26"}, "evaluation": evaluation, "runtime": {"precision": "fp32"}}
        recipe = Recipe.model_validate({**values, "optimizer": {"stop_after_skips": stop_after_skips}})
        self.trainer = Trainer(
            world=World(),
            recipe=recipe,
            plan=Plan(total, 4, log_every, evaluate_every, save_every, global_size=6, **plan),
            progress=self.progress,
            step=Steps(self.log, loss_of, grad_norm_of, stops_at, scaled),
            schedule=Schedule("step", peak=1.0, total=total, every=1, factor=0.5),
            train_batches=self._train_batches,
            names=lambda step, replica: [f"{step}/{replica}/{n}.jpg" for n in range(20)],
            bad_images=self.bad_images,
            val_batches=self._validation_batches,
            num_val_batches=2,
            models=self.models,
            classes=[f"class {number}" for number in range(CLASSES)],
            saver=self.saver,
            logger=self.logger,
            stop=self.stop,
        )
        self.fit = self.trainer.fit

    @contextmanager
    def _train_batches(self, start, end):
        if end > self.trainer.plan.total:
            assert (start, end) == (8, 11)
            self.log.append(("calibrate", start))
        else:
            self.starts.append(start)
        yield map(self._fetch, range(start, 1000))

    def _fetch(self, step):
        if step in self.bad_at:
            self.bad_images.note([ReplacedImage(step, f"{step}.jpg is empty", "other.jpg")])
        return step

    @contextmanager
    def _validation_batches(self):
        self.log.append(("evaluate", self.progress.step))
        labels = torch.arange(8) % CLASSES
        logits = F.one_hot(labels, CLASSES).float()
        logits[self.right(self.progress.step) :] *= -1
        yield iter([DeviceBatch(logits[:5], labels[:5], 0, 0, 0.0), DeviceBatch(logits[5:], labels[5:], 1, 0, 0.0)])

    def before_validation(self, action):
        """Call an action before each validation."""
        self.trainer.val_batches = lambda: (action(), self._validation_batches())[1]

    def what(self, *kinds):
        """Return the actions of some kinds in order, such as `step0 read0 save1`."""
        return " ".join(f"{kind}{number}" for kind, number in self.log if kind in kinds)

    def events(self, kind):
        return [event for event in self.logger.events if event["event"] == kind]

    def bests(self):
        """Return the saves, each with the step of the best so far."""
        return [(saved["step"], saved["best"] and saved["best"]["step"]) for saved in self.saver.saved]

    def resumed(self, **settings):
        return Run(**settings, progress=Progress(**self.saver.saved[-1]))


def fitted(**settings):
    run = Run(**settings)
    assert run.fit() is True
    assert run.saver.is_entered is False
    return run
