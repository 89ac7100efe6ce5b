"""A run that is interrupted anywhere and resumed has the bits of the uninterrupted run, at every world size.

One set of processes does all trainings of a world size (tests/exactness.py). In each run the loss of one step and the
gradient of another are not finite, in the last logical replica alone.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
from exactness import Lab, Training
from run_folders import status

pytestmark = pytest.mark.runs

full = pytest.mark.full
WORLDS = [1, *(pytest.param(world, marks=full) for world in (2, 3, 4))]

# An epoch has 3 steps: validation is due after steps 3, 6 and 7, the end. Two micro-batches a rank.
RECIPE = """
model: {{name: seresnext26, num_classes: 3, drop_rate: 0.2, drop_path_rate: 0.2}}
data: {{root: {images}, image_size: 32, workers: 0}}
augment: {{crop_scale: [0.5, 1.0], erasing: {{probability: 0.5}}}}
mix: {{mixup: 0.2, cutmix: 1.0}}
batch: {{global_size: {global_size}, micro_size: 2}}
length: 7st
optimizer: {{lr: 0.01, clip_norm: 5.0}}
schedule: {{name: cosine, warmup: 2st}}
ema: {{decay: 0.9, warmup: true}}
evaluation: {{every: 1ep, batch_size: {evaluation_size}}}
checkpoint: {{every: 4st, keep: 10}}
logging: {{every: 4st}}
runtime: {{precision: fp32}}
"""
SPOILT = {"1": "loss", "4": "gradient"}
ADAMW = ("optimizer.name=adamw",)


def _evaluation_size(world: int) -> int:
    """Return the images of a validation batch. A validation has some rounds, and few in one process."""
    return 2 if world == 1 else 1


def _trainings(world: int) -> list[Training]:
    """Return the trainings of all worlds. A training that resumes comes after the training that saved."""
    rounds = math.ceil(9 / _evaluation_size(world) / world)  # of a validation, for each of two sets of weights
    adamw = partial(Training, settings=ADAMW)
    trainings = [
        Training("whole"),
        # Stops before the first step; after the third, before the validation; in the second round of a validation.
        Training("before", stop_at=1), Training("before"),
        Training("epoch", stop_at=4), Training("epoch"),
        Training("twice", stop_at=6), Training("twice", stop_at=2 * rounds + 3),
        Training("twice", settings=("data.workers=2",)),
        # As by a kill between the third step, saved for the best validation, and the fourth.
        Training("killed", crash_at=3), Training("resumed", copy_of="killed"),
        # After the sixth step; in the second round of the validation; after the validation, before a save.
        Training("later", crash_at=6), Training("later", stop_at=5), Training("later", crash_at=6), Training("later"),
        adamw("adamw"), adamw("adamw stopped", stop_at=4), adamw("adamw stopped"),
        adamw("adamw killed", crash_at=3), adamw("adamw resumed", copy_of="adamw killed"),
    ]  # fmt: skip
    if world == 3:
        cold = partial(Training, without="warm_up")
        trainings += [cold("cold"), cold("cold-killed", crash_at=3), cold("cold-killed")]
    trainings = [replace(training, spoilt=SPOILT) for training in trainings]
    in_a_row = {"2": "loss", "3": "gradient"}
    return [*trainings, Training("stopped", spoilt=in_a_row, settings=("optimizer.stop_after_skips=2",))]


@pytest.fixture(scope="session")
def labs(tiny_image_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Lab]:
    """`labs(world)`: the lab of a world size, made once."""

    @cache
    def get(world: int) -> Lab:
        images = tmp_path_factory.mktemp("images") / "root"
        shutil.copytree(tiny_image_folder(classes=3, per_class=4 * world + 1, size=40, val_per_class=3), images)
        # All classes have the same images: every network has one of three right, and the first
        # validation stays the best.
        for label in (1, 2):
            shutil.rmtree(images / "val" / f"class_{label}")
            shutil.copytree(images / "val" / "class_0", images / "val" / f"class_{label}")
        recipe = RECIPE.format(images=images, global_size=4 * world, evaluation_size=_evaluation_size(world))
        lab = Lab(world, tmp_path_factory.mktemp(f"world{world}"), recipe)
        lab.perform(*_trainings(world))
        return lab

    return get


@pytest.fixture(params=WORLDS, ids="world{}".format)
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    return labs(request.param)


# ------------------------------------------------------------------------------------------------ interruptions


def test_the_uninterrupted_run(lab):
    """All other runs are compared with this run."""
    (seen,) = lab.seen["whole"]
    assert (len(seen.losses), seen.error, status(lab.folder / "whole")["state"]) == (7, None, "finished")
    assert all(len(losses) == 2 * lab.world for losses in seen.losses)
    steps = [0, 2, 3, 3, 3, 4, 5, 6, 6, 6, 7, 7, 7]  # a picture, skipped steps, lines, epochs and validations
    assert [line["step"] for line in lab.result("whole")["metrics"]] == steps


def test_interruptions_are_at_the_intended_steps(lab):
    """The tests below depend on these steps."""
    stopped = {run: [(seen.progress["step"], seen.progress["evaluated"]) for seen in lab.seen[run]] for run in lab.seen}
    assert stopped["before"] == [(0, 0), (7, 7)]
    assert stopped["epoch"] == [(3, 0), (7, 7)]
    assert stopped["twice"][0] == (3, 0)
    assert 3 < stopped["twice"][1][0] < 7
    assert stopped["twice"][2] == (7, 7)
    assert stopped["killed"] == [(3, 3)]
    assert stopped["later"] == [(6, 6), (6, 3), (6, 6), (7, 7)]
    resumed = {run: len(seen[-1].losses) for run, seen in lab.seen.items()}
    assert (resumed["before"], resumed["epoch"], resumed["resumed"], resumed["later"]) == (7, 4, 4, 1)


@pytest.mark.parametrize("run", ["before", "epoch", "twice", "resumed", "later", "adamw stopped", "adamw resumed"])
def test_it_is_bit_for_bit_the_uninterrupted_one(lab, run):
    whole = "adamw" if run.startswith("adamw") else "whole"
    assert lab.differences(run, whole) == []
    if whole == "adamw":
        names = {"optimizer.step", *(f"optimizer.{state}.layer0.bn1.weight" for state in ("exp_avg", "exp_avg_sq"))}
        assert names < lab.result(run).keys()


def test_all_ranks_have_the_same_bits(lab):
    assert [run for run, seen in lab.seen.items() if not all(each.same_on_all_ranks for each in seen)] == []


@full
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_interrupted_at_any_check_for_a_stop_request(labs, world):
    """Each step, each round of each validation."""
    lab = labs(world)
    looks = range(1, lab.seen["whole"][0].looks + 1)
    assert len(looks) > 20
    runs = {stop_at: Training(f"look {stop_at}", spoilt=SPOILT) for stop_at in looks}
    lab.perform(*(part for stop_at, run in runs.items() for part in (replace(run, stop_at=stop_at), run)))
    assert [stop_at for stop_at, run in runs.items() if lab.differences(run.run, "whole")] == []


@pytest.mark.full
def test_without_the_warm_up_three_ranks_differ(labs):
    """The control: DDP adds up the first step after a resume in another order, which a world of two would not show."""
    lab = labs(3)
    assert len(lab.differences("cold-killed", "cold")) > 100


# ------------------------------------------------------------------------------------------------ skipped steps


def test_adamw_skips_a_step_without_a_change(lab):
    """The skipped steps change no weights, no averages and no step count. AdamW counts five of the seven steps."""
    (seen,) = lab.seen["adamw"]
    assert seen.changed == [[]] * (2 * lab.world)
    assert lab.result("adamw")["optimizer.step"] == 5


def test_all_ranks_skip_what_is_not_finite_on_one(lab):
    """In one step a loss is not finite, in another only a gradient: not a bit changes on any rank."""
    (seen,) = lab.seen["whole"]
    assert seen.changed == [[]] * (2 * lab.world)
    bad = [[replica for replica, loss in enumerate(losses) if not math.isfinite(loss)] for losses in seen.losses]
    assert bad == [[], [2 * lab.world - 1], [], [], [], [], []]
    history = json.loads(lab.result("whole")["history"])
    assert [(entry["step"], entry["reason"]) for entry in history] == [
        (2, f"the loss is nan in micro-batch {2 * lab.world} of {2 * lab.world}"),
        (5, "the gradient's norm is inf"),
    ]
    assert [len(entry["samples"]) for entry in history] == [2, min(16, 4 * lab.world)]
    lines = lab.result("whole")["metrics"]
    skipped = [line for line in lines if line["event"] == "skipped"]
    assert [(line["step"], line["reason"]) for line in skipped] == [(e["step"], e["reason"]) for e in history]
    assert {len(line["samples"]) for line in skipped} == {2, 4 * lab.world}
    means = [(line["loss"], line["skipped"]) for line in lines if line["event"] == "train"]
    usual = [math.fsum(losses) / len(losses) for losses in seen.losses]
    assert means == [(sum(usual[i] for i in (0, 2, 3)) / 3, 1), (sum(usual[i] for i in (5, 6)) / 2, 1)]


def test_too_many_in_a_row_end_the_run(lab):
    (seen,) = lab.seen["stopped"]
    assert seen.error.startswith("TrainingStopped: the gradient's norm is inf in step 4; 2 steps in a row were skipped")
    ended = status(lab.folder / "stopped")
    assert ended["state"] == "failed"
    assert "optimizer.stop_after_skips" in ended["reason"]
    names = [line.strip() for line in ended["reason"].splitlines()[1:]]
    assert len(names) == min(16, 4 * lab.world)
    assert all(name.startswith("train/class_") for name in names)
