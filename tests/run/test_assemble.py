"""The objects of a run: notices, warm-up, first weights, garbage collection."""

import gc
import shutil
from argparse import Namespace
from collections.abc import Callable

import pytest
import torch
from run_folders import differences, last_tensors
from safetensors.torch import load_file, save_file
from small_digits import small
from torch._dynamo.testing import CompileCounter

from seresnext.data.pipeline import stand_in_batch
from seresnext.distributed import World
from seresnext.errors import CheckpointError
from seresnext.metrics.console import Console
from seresnext.recipe.schema import Recipe
from seresnext.run import validate as validation_module
from seresnext.run.assemble import Run
from seresnext.run.validate import validate
from seresnext.training import step as step_module
from seresnext.training.trainer import Trainer


@pytest.fixture
def make_run(narrow: pytest.MonkeyPatch, load_synthetic: Callable[[list[str]], Recipe]) -> Callable[..., Run]:
    """`make_run(settings, world=World())`: the run of a narrow network on synthetic images."""
    return lambda settings, world=None: Run(load_synthetic(settings), None, world or World(), Console(enabled=False))


def test_settings_that_the_run_does_not_reach_are_notes(narrow, load_synthetic, tmp_path, capsys):
    """An epoch has two steps, so the run has six."""
    console = Console(enabled=True, log=tmp_path / "log.txt")
    recipe = load_synthetic(["length=3ep", "schedule={name: cosine, warmup: 6st}"])
    assert Run(recipe, None, World(), console).plan.total == 6
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert "note: schedule.warmup, 6st, " in text


@pytest.fixture
def photos(tiny_image_folder, tmp_path):
    """Return a training split with three ignored files, and a validation split with one ignored file."""
    root = shutil.copytree(tiny_image_folder(), tmp_path / "photos")
    for name in ("train/class_0/a.mov", "train/class_1/b.mov", "train/list.txt", "val/class_2/c.xml"):
        (root / name).touch()
    return root


PASSED_OVER = ("2 .mov (an empty file), 1 .txt (an empty file)", "1 .xml (an empty file)")


@pytest.mark.parametrize(("val", "expected"), [("val", [1, 1]), ("train", [1, 0])])
def test_notices_of_readers_are_printed_once_at_each_start_and_logged(
    narrow, load_synthetic, photos, tmp_path, capsys, val, expected
):
    """The second start reads the index of the first."""
    recipe = load_synthetic([f"data={{root: {photos}, image_size: 32, workers: 0, val_split: {val}}}"])
    for start in (1, 2):
        Run(recipe, None, World(), Console(enabled=True, log=tmp_path / "log.txt"))
        log, out = (tmp_path / "log.txt").read_text(), capsys.readouterr().out
        assert [out.count(counts) for counts in PASSED_OVER] == expected
        assert [log.count(counts) for counts in PASSED_OVER] == [start * count for count in expected]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_validation_prints_the_notices_too(narrow, photos, tmp_path, capsys):
    save_file(small("", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    for _ in range(2):
        settings = Namespace(data=str(photos), split="val", image_size=32, workers=0)
        validate(tmp_path / "weights.safetensors", World(), settings)
        assert capsys.readouterr().out.count(PASSED_OVER[1]) == 1


GREY = ["model.in_channels=1", "data.mean=[0.5]", "data.std=[0.5]"]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Count the graphs that torch.compile makes, and run the graphs without a compiler."""
    counter = CompileCounter()
    torch._dynamo.reset()
    monkeypatch.setattr("seresnext.run.environment.resolve_compile", lambda requested, device: (requested, None))
    monkeypatch.setattr(step_module, "compile_forward", lambda model: torch.compile(model, backend=counter))
    return counter


def first_step(run: Run) -> None:
    run.warm_up()
    with run.train_batches(0, 1) as batches:
        run.step(batches, step=0, lr=0.1, stop=False).result()


@pytest.mark.parametrize(
    "settings",
    [["runtime.channels_last=true"], ["runtime.channels_last=false"], ["mix.mixup=0.2"], ["mix.cutmix=1"], GREY],
    ids=lambda settings: settings[0],
)
@pytest.mark.full
def test_the_first_step_uses_the_graph_of_the_warm_up(make_run, graphs, settings):
    first_step(make_run(["runtime.compile=true", *settings]))
    assert graphs.frame_count == 1


@pytest.mark.full
def test_another_layout_would_be_compiled_again(make_run, graphs, monkeypatch):
    """Control for the test above."""
    images = stand_in_batch

    def contiguous(recipe, device):
        return tuple(tensor.contiguous() for tensor in images(recipe, device))

    monkeypatch.setattr("seresnext.data.pipeline.stand_in_batch", contiguous)
    first_step(make_run(["runtime.compile=true"]))
    assert graphs.frame_count == 2


def test_the_warm_up_is_at_the_largest_size_of_training(make_run, monkeypatch):
    seen = []
    monkeypatch.setattr(step_module.TrainingStep, "warm_up", lambda self, images, labels: seen.append(images.shape))
    make_run([]).warm_up()
    make_run(["data.image_size=96", "data.progressive={min_size: 32, end_ramp: 1ep}"]).warm_up()
    make_run(["data.image_size=96", "data.progressive={min_size: 32, max_size: 64, end_ramp: 1ep}"]).warm_up()
    assert seen == [(4, 3, 32, 32), (4, 3, 96, 96), (4, 3, 64, 64)]


@pytest.fixture
def weights(make_run, tmp_path):
    """Write weights for other classes, with BatchNorm means that differ from a fresh network."""
    model = make_run(["runtime.seed=7", "model.num_classes=5"]).model
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.full
def test_a_resume_does_not_need_the_first_weights(train_synthetic, weights, tmp_path):
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
    assert differences(whole, resumed) == []
    found = last_tensors(resumed)
    kept = {name for name in began_with if torch.equal(found[f"model.{name}"], began_with[name])}
    assert kept == {name for name in began_with if name.startswith(("layer0.", "layer1."))}
    note = "starts untrained (model.reset_head)"
    assert [(run / "log.txt").read_text().count(note) for run in (whole, resumed)] == [1, 0]
    with pytest.raises(CheckpointError, match="cannot be read"):  # Control: a fresh run needs the file.
        train_synthetic(tmp_path / "fresh", settings)


@pytest.fixture
def uncollected():
    """Disable the garbage collector, like the start of train.py and validate.py."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.full
def test_garbage_is_collected_from_the_first_step_or_image_on(train_synthetic, uncollected, monkeypatch, tmp_path):
    """A long run would otherwise keep every object in a reference cycle."""
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
    validate(run / "checkpoints" / "last.safetensors", World(), Namespace())
    assert seen == [True, True]
