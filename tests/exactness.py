"""Many trainings in the same processes, one after the other, to save the start of processes.

As a program, with or without torchrun, `tests/exactness.py FOLDER` performs the trainings of `FOLDER/trainings.json`
like train.py, in run folders within FOLDER, and writes observations to `FOLDER/reports.json`. The network is a narrow
SE-ResNeXt of 4 blocks; all other code is the real code.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import launcher
import torch
from run_folders import lines
from safetensors import safe_open
from torch import Tensor, nn

if TYPE_CHECKING:
    from seresnext.distributed import World


@dataclass(frozen=True)
class Training:
    """One call of the command. A second call in the same run folder, or in a `copy_of` a folder, resumes the run.

    `stop_at`: the last rank gets a stop request at this number of checks for a request. `crash_at`: all ranks crash
    before this step (from 0). `spoilt` maps a step (from 0, as text) to `loss` or `gradient`, which is then not finite
    in the last logical replica. `without` removes a part of the program, for controls.
    """

    run: str
    settings: tuple[str, ...] = ()
    copy_of: str | None = None
    stop_at: int | None = None
    crash_at: int | None = None
    spoilt: dict[str, str] | None = None
    without: str | None = None


@dataclass
class Seen:
    """The observations of a training.

    `looks`: the number of checks for a stop request on the last rank. `progress`: the progress at the end.
    `losses`: the losses by step and logical replica. `inputs`: digests of the inputs of the network by step and
    replica. `changed`: for each rank, the tensors that a spoilt step changed.
    """

    looks: int = 0
    progress: Any = None
    losses: list[list[float]] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    changed: list[list[str]] = field(default_factory=list)
    same_on_all_ranks: bool = False
    error: str | None = None


class Crash(BaseException):
    """A stand-in for the end of a process: no code of the program catches this exception."""


class CountedStop:
    """A stand-in for StopRequest with a request from the n-th check on."""

    def __init__(self, stop_at: int | None) -> None:
        self.count = 0
        self.signal = None
        self._stop_at = stop_at

    @property
    def requested(self) -> bool:
        self.count += 1
        return self._stop_at is not None and self.count >= self._stop_at

    def defer(self) -> None:
        """Do nothing: no test here sends Ctrl-C."""


def perform(trainings: Sequence[Training], folder: Path) -> list[Seen]:
    """Perform the trainings on all ranks of this program."""
    from seresnext.distributed import World, open_world

    seen = []
    with open_world() as joined:
        for training in trainings:
            if training.copy_of and joined.is_first:
                shutil.copytree(folder / training.copy_of, folder / training.run)
            joined.gather(None)
            # The heartbeat of this world never starts. It would report a crashed rank to the other ranks.
            seen.append(_perform(training, World(joined.rank, joined.size, joined.device), folder))
            gc.collect()  # This releases the lock of the run folder.
            if len(seen) == 1:
                gc.freeze()  # All modules are loaded. Later collections ignore them, which saves half a second each.
    return seen


def _perform(training: Training, world: World, folder: Path) -> Seen:
    from seresnext.errors import TrainingStopped
    from seresnext.recipe.load import load_recipe
    from seresnext.run import train as assembled

    seen = Seen()
    stop = CountedStop(training.stop_at if world.rank == world.size - 1 else None)
    loaded = load_recipe(str(folder / "recipe.yaml"), training.settings)
    runs: list[Any] = []
    with ExitStack() as changes:
        for change in _changes(training, seen, runs):
            changes.enter_context(change)
        try:
            assembled.train(loaded.recipe, world, stop, output=folder / training.run, resume="auto", allow_changed=())
        except (TrainingStopped, Crash) as error:
            seen.error = f"{type(error).__name__}: {error}"
    looks, inputs, changed = zip(*world.gather((stop.count, seen.inputs, seen.changed)), strict=True)
    seen.looks = looks[-1]
    seen.inputs = {key: digest for of_rank in inputs for key, digest in of_rank.items()}
    seen.changed = [tensors for of_rank in changed for tensors in of_rank]
    seen.same_on_all_ranks = len(set(world.gather(repr(_digests(runs[-1]))))) == 1
    return seen


def _changes(training: Training, seen: Seen, runs: list[Any]) -> Iterator[Any]:
    from seresnext.data.augment.mixup import MixupCutmix
    from seresnext.distributed import BatchNormStatistics, World
    from seresnext.models import registry
    from seresnext.run import assemble as run_module
    from seresnext.run import train as assembled
    from seresnext.training import step as step_module
    from seresnext.training.result import PendingResult
    from seresnext.training.step import TrainingStep

    class Run(run_module.Run):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            runs.append(self)

        def trainer(self, folder: Any, saved: Any, progress: Any, stop: Any) -> Any:
            seen.progress = progress
            return super().trainer(folder, saved, progress, stop)

    call, wait, forward_backward = TrainingStep.__call__, PendingResult.result, TrainingStep._forward_backward
    spoilt = training.spoilt or {}

    def watched_call(self: TrainingStep, batches: Any, *, step: int, **options: Any) -> Any:
        if step == training.crash_at:
            raise Crash
        if str(step) not in spoilt:
            return call(self, batches, step=step, **options)
        before = _digests(runs[-1])
        report = call(self, batches, step=step, **options)
        after = _digests(runs[-1])
        seen.changed.append([name for name in before if after[name] != before[name]])
        return report

    def watched_result(self: PendingResult) -> Any:
        result = wait(self)
        seen.losses.append(list(result.losses))
        return result

    def watched_mix(self: MixupCutmix, images: Any, labels: Any, *, step: int, replica: int) -> Any:
        mixed = mix(self, images, labels, step=step, replica=replica)
        seen.inputs[f"{step}/{replica}"] = " ".join(_digest(tensor) for tensor in mixed)
        return mixed

    def spoiling(self: TrainingStep, batch: Any) -> Any:
        how = spoilt.get(str(batch.step))
        if not how or batch.replica != runs[-1].order.replicas - 1:
            return forward_backward(self, batch)
        if how == "loss":
            return forward_backward(self, batch._replace(images=batch.images * float("nan")))
        weight = runs[-1].model.layer4[0].conv1.weight
        hook = weight.register_hook(lambda gradient: gradient / 0)
        try:
            return forward_backward(self, batch)
        finally:
            hook.remove()

    mix = MixupCutmix.__call__
    yield patch.object(registry, "create_model", narrow)
    yield patch.object(assembled, "Run", Run)
    yield patch.object(TrainingStep, "__call__", watched_call)
    yield patch.object(PendingResult, "result", watched_result)
    yield patch.object(TrainingStep, "_forward_backward", spoiling)
    yield patch.object(MixupCutmix, "__call__", watched_mix)
    end_step, seed_at = BatchNormStatistics.end_step, step_module.torch_seed_at
    removals = {
        "warm_up": (TrainingStep, "warm_up", lambda *_: None),
        "own_dropout": (step_module, "torch_seed_at", lambda *address: seed_at(*address[:-1], address[-1] % 2)),
        "averaged_statistics": (
            BatchNormStatistics, "end_step", lambda self, _, report: end_step(self, World(), report),
        ),
    }  # fmt: skip
    if training.without:
        yield patch.object(*removals[training.without])


def narrow(_: str, **options: Any) -> nn.Module:
    """Return an SE-ResNeXt with a quarter of the channels: half a million weights, several buckets of DDP."""
    from seresnext.models import SENet, blocks, senet
    from seresnext.models.blocks import SEResNeXtBottleneck

    with patch.object(blocks, "EXPANSION", 1), patch.object(senet, "EXPANSION", 1):
        net = SENet((1, 1, 1, 1), cardinality=4, **options)
        for number in (2, 3, 4):
            block = partial(SEResNeXtBottleneck, cardinality=4, base_width=4, reduction=16)
            channels = 32 * 2**number
            rate = iter([options["drop_path_rate"] * number / 4])
            stage = senet._stage(block, rate, in_channels=channels // 2, channels=channels, count=1, stride=2)
            net.set_submodule(f"layer{number}", stage)
        net._initialise(zero_init_last=False)
    return net


def _digests(run: Any) -> dict[str, str]:
    from seresnext.training.optimizer import optimizer_state

    state = {f"optimizer.{name}": tensor for name, tensor in optimizer_state(run.model, run.optimizer).items()}
    ema = run.ema.model.state_dict(prefix="ema.") if run.ema else {}
    tensors = {**run.model.state_dict(prefix="model."), **ema, **state}
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------------ the test's side


class Lab:
    """A folder of runs of one world size and of one recipe, `recipe.yaml`, with the observations."""

    def __init__(self, world: int, folder: Path, recipe: str) -> None:
        self.world = world
        self.folder = folder
        self.seen: dict[str, list[Seen]] = {}
        (folder / "recipe.yaml").write_text(recipe)

    def perform(self, *trainings: Training) -> None:
        """Perform the trainings in new processes. `seen` then has the observations of each run in order."""
        (self.folder / "trainings.json").write_text(json.dumps([asdict(training) for training in trainings]))
        launcher.complete(self.world, [__file__, self.folder])
        reports = json.loads((self.folder / "reports.json").read_text())
        for training, report in zip(trainings, reports, strict=True):
            self.seen.setdefault(training.run, []).append(Seen(**report))

    def result(self, run: str) -> dict[str, Any]:
        """Return all results of a run that must not depend on interruptions: tensors, numbers and lines by name."""
        with safe_open(self.folder / run / "checkpoints" / "last.safetensors", framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        assert any(name.startswith("optimizer.") for name in found)
        assert any(name.startswith("ema.") for name in found)
        for name in ("step", "best", "history", "progress"):
            found[name] = metadata[name]
        found["metrics"] = lines(self.folder / run)
        return found

    def differences(self, run: str, other: str) -> list[str]:
        one, two = self.result(run), self.result(other)
        assert one.keys() == two.keys()
        return [name for name in one if not _is_same(one[name], two[name])]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    return one == other


if __name__ == "__main__":
    place = Path(sys.argv[1])
    performed = perform([Training(**each) for each in json.loads((place / "trainings.json").read_text())], place)
    if os.environ.get("RANK", "0") == "0":
        (place / "reports.json").write_text(json.dumps([asdict(report) for report in performed]))
