"""A run's objects, each as the recipe says, and made ready for the images that will come."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable

import pytest
import torch
from run_folders import last_tensors
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounter

from seresnext.data.pipeline import stand_in_batch
from seresnext.distributed import World
from seresnext.errors import CheckpointError, RecipeError
from seresnext.evaluation import Evaluation
from seresnext.metrics.console import Console
from seresnext.models import create_model
from seresnext.recipe.load import LoadedRecipe, load_recipe
from seresnext.run import validate as validation_module
from seresnext.run.assemble import Run
from seresnext.run.validate import validate
from seresnext.training import step as step_module
from seresnext.training.trainer import Trainer


@pytest.fixture
def make_run(narrow: pytest.MonkeyPatch, load_synthetic: Callable[[list[str]], LoadedRecipe]) -> Callable[..., Run]:
    """`make_run(settings, world=World())`: the run of a narrow network on made-up images."""
    return lambda settings, world=None: Run(
        load_synthetic(settings).values, {}, world or World(), Console(enabled=False)
    )


# ------------------------------------------------------------------------------------------------ lengths


def test_durations_of_other_units_are_compared_when_an_epoch_is_known(narrow, load_synthetic, tmp_path, capsys):
    """Two steps an epoch. What was typed is refused, and what a length leaves behind is said."""
    console = Console(enabled=True, log=tmp_path / "log.txt")
    typed = load_synthetic(["length=3ep", "schedule={name: cosine, warmup: 6st}"])
    assert Run(typed.values, {}, World(), console).plan.total == 6
    with pytest.raises(RecipeError, match=r"schedule\.warmup: is not reached within length, 3ep, found 6st"):
        Run(typed.values, {}, World(), console, typed.meant)
    shortened = load_synthetic(["length=3st"])
    plain = dict(shortened.values, schedule=load_recipe("seresnext50").values["schedule"])
    capsys.readouterr()
    Run(plain, {}, World(), console, shortened.meant)
    said = "note: schedule.every, 30ep, is not reached within length, 3st: the learning rate never falls"
    assert said in (tmp_path / "log.txt").read_text()
    assert said in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ the data


@pytest.fixture
def photos(tiny_image_folder, tmp_path):
    """A training split with three files that are passed over, and a validation split with one."""
    root = shutil.copytree(tiny_image_folder(), tmp_path / "photos")
    for name in ("train/class_0/a.webp", "train/class_1/b.webp", "train/list.txt", "val/class_2/c.heic"):
        (root / name).touch()
    return root


PASSED_OVER = ("(2 .webp, 1 .txt)", "(1 .heic)")


@pytest.mark.parametrize("val", ["val", "train"])
def test_what_readers_report_is_reported_once_at_each_start_and_logged(
    narrow, load_synthetic, photos, tmp_path, capsys, val
):
    """The second start reads the index of the first. Times that show no changes are reported the same way."""
    for folder in (photos / "train").iterdir():
        os.utime(folder, (0, 0))
    data = f"data={{format: folder, root: {photos}, image_size: 32, workers: 0, val_split: {val}}}"
    loaded = load_synthetic([data])
    for start in (1, 2):
        Run(loaded.values, {}, World(), Console(enabled=True, log=tmp_path / "log.txt"), loaded.meant)
        out = capsys.readouterr().out
        log = (tmp_path / "log.txt").read_text()
        for split, counts in zip(("train", "val"), PASSED_OVER, strict=True):
            expected = int(split in ("train", val))
            assert out.count(counts) == expected
            assert log.count(counts) == start * expected
        lines = [line for line in out.splitlines() if line.startswith(f"warning: {photos}/train: ")]
        assert len(lines) == 2
        assert ".webp" in lines[0]
        assert "times" in lines[1]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_validation_reports_them_too(photos, tmp_path, capsys, monkeypatch):
    model = create_model("legacy_seresnext26_32x4d", num_classes=3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr(validation_module, "evaluate", lambda *_, **__: Evaluation(50.0, 100.0, 1.0, 12, 1.0))
    for _ in range(2):
        validate(tmp_path / "weights.safetensors", World(), str(photos), "val", None, None)
        assert capsys.readouterr().out.count(PASSED_OVER[1]) == 1


# ------------------------------------------------------------------------------------------------ the warm-up

GREY = "data={format: synthetic, synthetic_images: 16, image_size: 32, workers: 0, mean: [0.5], std: [0.5]}"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts the graphs that are compiled, and runs them as they are."""
    counter = CompileCounter()
    torch._dynamo.reset()
    monkeypatch.setattr("seresnext.run.assemble.resolve_compile", lambda requested, device: (requested, None))
    monkeypatch.setattr(step_module, "compile_forward", lambda model: torch.compile(model, backend=counter))
    return counter


def first_step(run: Run) -> None:
    step = run.build_step()
    with run.train_batches(step.own_replicas, 0, 1) as batches:
        step(batches, step=0, lr=0.1, stop=False).result()


@pytest.mark.parametrize(
    "settings",
    [
        ["runtime.channels_last=true"],
        ["runtime.channels_last=false"],
        ["mix.mixup=0.2"],
        ["mix.cutmix=1"],
        ["model.in_channels=1", GREY],
    ],
    ids=lambda settings: settings[0],
)
def test_what_the_warm_up_compiles_the_first_step_uses(make_run, graphs, settings):
    first_step(make_run(["runtime.compile=true", *settings]))
    assert graphs.frame_count == 1


def test_another_layout_would_be_compiled_again(make_run, graphs, monkeypatch):
    """The control."""
    images = stand_in_batch

    def contiguous(recipe, device):
        return tuple(tensor.contiguous() for tensor in images(recipe, device))

    monkeypatch.setattr("seresnext.run.assemble.stand_in_batch", contiguous)
    first_step(make_run(["runtime.compile=true"]))
    assert graphs.frame_count == 2


def test_the_warm_up_is_at_the_largest_size_of_training(make_run, monkeypatch):
    seen = []
    monkeypatch.setattr(step_module.TrainingStep, "warm_up", lambda self, images, labels: seen.append(images.shape))
    make_run([]).build_step()
    make_run(["data.image_size=96", "data.progressive={min_size: 32, end_ramp: 1ep}"]).build_step()
    make_run(["data.image_size=96", "data.progressive={min_size: 32, max_size: 64, end_ramp: 1ep}"]).build_step()
    assert seen == [(4, 3, 32, 32), (4, 3, 96, 96), (4, 3, 64, 64)]


# ------------------------------------------------------------------------------------------------ first weights


@pytest.fixture
def weights(make_run, tmp_path):
    """A file of weights of other classes, which are those of no fresh network."""
    model = make_run(["runtime.seed=7", "model.num_classes=5"]).model
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_run_goes_on_without_the_weights_it_began_with(train_synthetic, weights, tmp_path):
    settings = [
        f"model.weights={weights}", "model.reset_head=true", "model.frozen=[layer0, layer1]",
        "length=4st", "evaluation.every=4st", "checkpoint.every=2st",
    ]  # fmt: skip
    whole, resumed = train_synthetic(tmp_path / "whole", settings), tmp_path / "resumed"
    began_with = load_file(weights)
    weights.unlink()
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "step-00000002.safetensors", resumed / "checkpoints")
    train_synthetic(resumed, settings)
    expected, found = last_tensors(whole), last_tensors(resumed)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    kept = {name for name in began_with if torch.equal(found[f"model.{name}"], began_with[name])}
    assert kept == {name for name in began_with if name.startswith(("layer0.", "layer1."))}
    note = "starts untrained (model.reset_head)"
    assert [(run / "log.txt").read_text().count(note) for run in (whole, resumed)] == [1, 0]
    with pytest.raises(CheckpointError, match="cannot be opened"):  # The control: a fresh run needs them.
        train_synthetic(tmp_path / "fresh", settings)


# ------------------------------------------------------------------------------------------------ start


@pytest.fixture
def uncollected():
    """As train.py and validate.py begin."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_garbage_is_collected_from_the_first_step_or_image_on(train_synthetic, uncollected, monkeypatch, tmp_path):
    """A run of days, and a validation of any size, would else keep all that refers to itself."""
    monkeypatch.setattr("seresnext.models.registry.create_model", create_model)  # validate.py wants a real one.
    seen = []
    fit, evaluate = Trainer.fit, validation_module.evaluate
    monkeypatch.setattr(Trainer, "fit", lambda self: seen.append(gc.isenabled()) or fit(self))
    monkeypatch.setattr(
        validation_module,
        "evaluate",
        lambda *words, **options: seen.append(gc.isenabled()) or evaluate(*words, **options),
    )
    run = train_synthetic(tmp_path / "run", ["length=1st", "schedule.warmup=0ep"])
    gc.disable()
    validate(run / "checkpoints" / "last.safetensors", World(), None, None, None, None)
    assert seen == [True, True]
