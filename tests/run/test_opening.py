"""One error lists all problems of a start, and the next start accepts all advice of this error."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from seresnext.data.pipeline import check_same_data
from seresnext.data.shards.reader import ShardReader
from seresnext.data.synthetic import SyntheticReader
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, RecipeError, UsageError
from seresnext.metrics.status import read_status
from seresnext.models.registry import build_model
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import load_recipe
from seresnext.run import opening
from seresnext.run.opening import StartProblem, check_images, open_splits
from seresnext.run.train import train


@dataclass(frozen=True)
class Ranks(World):
    """Rank 0 of several ranks. The other ranks see the same as rank 0, or `others`."""

    others: list | None = None

    def gather(self, value):
        return [value, *(self.others if self.others is not None else [value] * (self.size - 1))]

    def broadcast(self, value):
        return value


@pytest.fixture
def photos(tiny_image_folder, tmp_path: Path) -> Path:
    """Copy 55 training and 12 validation images, in three classes."""
    root = shutil.copytree(tiny_image_folder(3, 19, 40, 4), tmp_path / "photos")
    for number in range(2):
        (root / "train" / "class_0" / f"{number}.jpg").unlink()
    return root


def opened(*settings: str, world: World | None = None, warn=print, previous=None):
    checkpoint: Any = previous and SimpleNamespace(recipe=previous, metadata=SimpleNamespace(dataset={}))
    return open_splits(load_recipe("digits", settings).recipe, checkpoint, world or World(), warn)


def refusal(root: Path, *settings: str, **options) -> Exception:
    with pytest.raises((DataError, UsageError, CheckpointError)) as caught:
        opened(f"data.root={root}", *settings, **options)
    return caught.value


def settings_of(error: Exception) -> list[str]:
    return re.findall(r"--set (\S+)", str(error).splitlines()[-1])


FEW = "batch={global_size: 8, micro_size: 8}"


def break_image(root: Path, name: str) -> None:
    (root / name).write_bytes((root / name).read_bytes()[:500])


def test_weights_of_unknown_classes_are_reported_with_the_other_problems(photos):
    weights = "loss.class_weights={clas_0: 2, class_1: 3, mouse: 1}"
    opened(f"data.root={photos}", FEW, "model.num_classes=3", "loss.class_weights={class_1: 3}")  # The control.
    error = refusal(photos, FEW, "model.num_classes=3", weights)
    assert isinstance(error, RecipeError)
    problem = str(error).splitlines()[-1].strip()
    assert problem == (
        f"loss.class_weights: {photos} has no class clas_0, mouse (did you mean class_0?); write names of its 3 "
        "classes: class_0, class_1, class_2"
    )
    both = str(refusal(photos, FEW, weights))
    assert "model.num_classes=3" in both
    assert problem in both


def test_all_problems_come_at_once_and_the_advice_is_taken(photos, narrow, tmp_path, capsys):
    """The test repairs the validation image by hand. The settings of the error message then start the run."""
    good = (photos / "val" / "class_1" / "0.jpg").read_bytes()
    for name in ("train/class_1/3.jpg", "train/class_2/4.jpg", "val/class_1/0.jpg"):
        break_image(photos, name)
    weights = tmp_path / "weights.safetensors"
    common = [
        f"data.root={photos}", "data.split=null", "data.image_size=32", "data.workers=0", "data.on_error=raise",
        "model.num_classes=1000", f"model.weights={weights}", "length=1st", "schedule.warmup=0ep",
        "runtime.precision=fp32",
    ]  # fmt: skip
    output = tmp_path / "run"

    def start(settings: list[str]) -> None:
        recipe = load_recipe("finetune", [*common, *settings]).recipe
        train(recipe, World(), StopRequest(), output=output, resume="auto", allow_changed=())

    with pytest.raises(DataError) as caught:
        start([])
    error = str(caught.value)
    for words in (
        "model.num_classes=3", "53 usable", "batch.global_size: 64", "batch.global_size=32",
        "class_1/3.jpg", "class_2/4.jpg", "data.on_error=substitute", "val/class_1/0.jpg", str(weights),
    ):  # fmt: skip
        assert words in error
    assert error.count("data.on_error") == 1  # The setting does not permit bad validation images.

    (photos / "val" / "class_1" / "0.jpg").write_bytes(good)
    model = build_model(load_recipe("seresnext26").recipe.model)
    save_file(model.state_dict(), weights)
    settings = settings_of(caught.value)
    assert settings == ["model.num_classes=3", "batch.global_size=32", "batch.micro_size=32"]
    start([*settings, "data.on_error=substitute"])
    assert read_status(output)["state"] == "finished"


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("extra", [[], ["mix.mixup=0.2"], ["augment.repeats=2"], ["batch.micro_size=64"]])
def test_the_batch_that_is_advised_is_accepted(photos, world_size, extra):
    world = Ranks(size=world_size)
    error = refusal(photos, "model.num_classes=10", *extra, world=world)
    assert isinstance(error, DataError)
    root = f"data.root={photos}"
    _, train_split, _ = opened(root, *extra, *settings_of(error), world=world)
    assert len(train_split) == 55


def test_processes_that_do_not_fit_are_a_problem_of_the_recipe(photos):
    settings = ("model.num_classes=3", "batch={global_size: 32, micro_size: 32}")
    error = refusal(photos, *settings, world=Ranks(size=3))
    assert isinstance(error, RecipeError)
    assert "3 processes" in str(error)
    assert isinstance(refusal(photos, settings[1], world=Ranks(size=3)), DataError)
    for advice in re.findall(r"set (batch[^,]*)", str(error)):
        opened(f"data.root={photos}", *settings, *re.findall(r"batch\.\w+=\d+", advice), world=Ranks(size=3))
    too_few = str(refusal(photos, "model.num_classes=3", world=Ranks(size=64)))
    assert "55 training" in too_few
    assert "processes" in too_few


def test_both_splits_and_their_root(photos):
    error = str(refusal(photos, "data.train_split=a", "data.val_split=b"))
    assert "'a'" in error
    assert "'b'" in error
    nowhere = str(refusal(photos / "nowhere"))
    assert nowhere.count("nowhere") == 1  # The message has the folder once, and no rank.
    assert "rank" not in nowhere


def test_images_that_removal_leaves_too_few(photos):
    """The advised batch fits the images that remain, so that the start after a removal is not refused."""
    break_image(photos, "train/class_1/3.jpg")
    few = ("model.num_classes=3", "batch={global_size: 55, micro_size: 55}")
    error = refusal(photos, *few)
    assert "54 usable" in str(error)
    assert settings_of(error) == ["batch.global_size=54", "batch.micro_size=27"]
    opened(f"data.root={photos}", *few, "data.on_error=substitute")


def test_many_bad_images_are_listed_up_to_a_limit(photos):
    for path in [*(photos / "val").glob("*/*"), *(photos / "train" / "class_1").glob("*")]:
        path.write_bytes(b"")
    error = str(refusal(photos, "model.num_classes=3", FEW))
    assert "12 of 12 validation" in error
    assert "19 of 55 training" in error
    assert error.count(".jpg") == 31
    only_val = str(refusal(photos, "model.num_classes=3", FEW, "data.on_error=substitute"))
    assert only_val.count(".jpg") == 12
    assert "training" not in only_val


def test_lengths_that_the_advised_batch_changes_are_reported_as_well(photos):
    """One epoch has one step, so the ramp would end before its start."""
    ramp = "data.progressive={min_size: 16, start_ramp: 3ep, end_ramp: 2st}"
    error = refusal(photos, "model.num_classes=3", ramp)
    assert isinstance(error, DataError)
    assert "data.progressive.start_ramp" in str(error)


def test_missing_weights_alone_are_an_error_of_a_checkpoint(photos):
    missing = refusal(photos, FEW, "model.num_classes=3", "model.weights=none.pth")
    assert isinstance(missing, CheckpointError)
    assert re.search(r"none\.pth.* \(model\.weights\); set model\.weights to the path of a file", str(missing))


def test_a_resumed_run_gets_no_advice_to_change_the_classes(photos):
    """The next start would refuse such a change."""
    larger = "batch={global_size: 64, micro_size: 32}"
    previous = load_recipe("digits", ["model.num_classes=2", FEW]).recipe
    error = str(refusal(photos, "model.num_classes=2", larger, "model.weights=none.pth", previous=previous))
    assert "new run" in error
    assert "none.pth" not in error  # Only the first start reads model.weights.
    previous = load_recipe("digits", ["model.num_classes=3", FEW]).recipe
    assert "new run" not in str(refusal(photos, "model.num_classes=3", larger, previous=previous))


def test_only_the_machine_that_differs_is_named():
    def seen(own, *others):
        world = Ranks(size=3, others=[(f"host{number}", each) for number, each in enumerate(others, 1)])
        return [problem.text for problem in opening._seen_by_all(own, world)]

    one, two = StartProblem(DataError, "one"), StartProblem(DataError, "two")
    assert seen([one, two], [one, two], [one, two]) == ["one", "two"]
    assert seen([one], [one], [one, two]) == ["one", "rank 2 on host2: two"]
    assert seen([], [two], []) == ["rank 1 on host1: two"]


def test_the_copy_that_differs_is_named_even_on_rank_0():
    def check(*lengths: int) -> None:
        readers = [SyntheticReader(length, 2) for length in lengths]
        facts = [(f"host{rank}", ((len(each), each.fingerprint),)) for rank, each in enumerate(readers)]
        check_same_data(Ranks(size=len(lengths), others=facts[1:]), readers[0])

    check(5, 5, 5)
    with pytest.raises(DataError, match=r"^rank 2 on host2 "):
        check(5, 5, 6)
    with pytest.raises(DataError, match=r"^rank 0 on .* than rank 1 on host1"):
        check(6, 5, 5)


def test_training_images_that_validate_are_a_warning(photos, tmp_path):
    def warnings(root: Path, *settings: str) -> list[str]:
        lines: list[str] = []
        opened(f"data.root={root}", "model.num_classes=3", FEW, *settings, warn=lines.append)
        return lines

    assert warnings(photos) == []
    (same,) = warnings(photos, "data.val_split=train")
    assert "data.val_split" in same
    linked = tmp_path / "linked"
    linked.mkdir()
    for split in ("train", "val"):
        (linked / split).symlink_to(photos / "train")
    assert len(warnings(linked)) == 1


def test_turned_images_are_a_warning_and_synthetic_images_are_not_checked(photos, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("train/class_0/5.jpg", "val/class_2/1.jpg"):
        Image.open(photos / name).save(photos / name, exif=exif)
    lines: list[str] = []
    opened(f"data.root={photos}", "model.num_classes=3", FEW, warn=lines.append)
    (line,) = lines
    assert "1 of 55 training" in line
    assert "1 of 12 validation" in line
    monkeypatch.setattr(opening, "survey", None)
    _, train_split, val_split = opened("data.format=synthetic", "data.synthetic_images=64", warn=lines.append)
    assert len(train_split) == len(val_split) == 64
    remote = ShardReader.__new__(ShardReader)
    remote.has_local_files = False
    assert opening._survey(load_recipe("digits").recipe, {"training": remote}, lines.append) == {}
    assert lines == [line]


def test_a_validation_names_all_its_bad_images(photos):
    recipe = load_recipe("digits", [f"data.root={photos}"]).recipe
    reader = opening.open_reader(photos, "val")
    lines: list[str] = []
    check_images(recipe, {"val": reader}, World(), lines.append)
    for number in (0, 2):
        break_image(photos, f"val/class_1/{number}.jpg")
    with pytest.raises(DataError) as caught:
        check_images(recipe, {"val": reader}, World(), lines.append)
    for words in ("2 of 12 val", "class_1/0.jpg", "class_1/2.jpg"):
        assert words in str(caught.value)
    assert "substitute" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ photographs


def test_the_number_of_classes_comes_from_the_data(photos):
    recipe, train_split, _ = opened(f"data.root={photos}", "model.num_classes=auto", FEW)
    assert recipe.model.num_classes == len(train_split.classes) == 3
    previous = recipe.changed(model={"num_classes": 7})
    with pytest.raises(DataError, match="has 3 class folders, the run that is resumed has 7"):
        opened(f"data.root={photos}", "model.num_classes=auto", FEW, previous=previous)
    shutil.rmtree(photos / "train" / "class_1")
    shutil.rmtree(photos / "train" / "class_2")
    error = str(refusal(photos, "model.num_classes=auto", FEW))
    assert "only in validation: class_1, class_2" in error
    assert "a classifier needs two classes" in error


def test_other_words_for_val_need_no_key(photos):
    (photos / "val").rename(photos / "valid")
    (photos / "valid" / "class_0" / "0.jpg").write_bytes(b"")
    lines: list[str] = []
    _, train_split, val_split = opened(f"data.root={photos}", "model.num_classes=3", FEW, warn=lines.append)
    assert (len(train_split), len(val_split)) == (55, 11)
    assert lines == [f"warning: {photos}: unreadable photos are left out (1):\n  valid/class_0/0.jpg is empty"]
    break_image(photos, "valid/class_0/1.jpg")
    assert len(opened(f"data.root={photos}", "model.num_classes=3", FEW)[2]) == 10
