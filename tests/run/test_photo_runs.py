"""Whole runs on photographs in class folders: the number of classes, the splits, a resume and later validations."""

import csv
import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import make, photo

from seresnext.checkpoint import store
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.distributed import World
from seresnext.errors import DataError
from seresnext.run.validate import Validation, validate

FILES = [f"{label}/{number}.jpg" for label in ("bird", "cat", "dog") for number in range(12)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return class folders of 12 photos."""
    return make(tmp_path / "photos", *FILES)


@pytest.fixture
def trained(train_synthetic: Callable[..., Path], tmp_path: Path, root: Path) -> Callable[..., Path]:
    """`trained(*settings, allowed=(), resume="auto") -> run`: train on the photos."""
    data = f"data={{root: {root}, image_size: 32, workers: 0, split: {{val: 0.25}}}}"
    usual = ["model.num_classes=auto", "ema=null", "length=4st", "checkpoint.every=2st", data]
    return lambda *settings, **options: train_synthetic(tmp_path / "run", [*usual, *settings], **options)


def table(output: Path) -> dict[str, str]:
    """Return the split of each path in `split.csv`."""
    return {row["path"]: row["split"] for row in csv.DictReader((output / "split.csv").read_text().splitlines())}


def measured(output: Path, **settings) -> Validation:
    return validate(output / "checkpoints" / "last.safetensors", World(), Namespace(**settings))


def names(validation: Validation) -> set[str]:
    return {validation.reader.name(index) for index in range(len(validation.reader))}


def test_class_folders_train_and_later_validations_use_the_same_images(trained, root, tmp_path):
    """Also after the files of the choice are gone, and after a photo was added. A photo is too large."""
    (root / "cat" / "large.jpg").write_bytes(photo(0, size=64))
    (tmp_path / "map.csv").write_text("bird,animal\ndog,animal\n")
    (tmp_path / "exclude.csv").write_text("path,reason\ncat/3.jpg,dark\n")
    files = [f"data.class_map={tmp_path}/map.csv", f"data.exclude={tmp_path}/exclude.csv", "data.ignore=['bird/1*']"]
    output = trained(*files, "data.max_pixels=2000")
    (tmp_path / "map.csv").unlink()
    (tmp_path / "exclude.csv").unlink()
    splits = table(output)
    left_out = {"cat/3.jpg", "bird/1.jpg", "bird/10.jpg", "bird/11.jpg"}
    assert splits.keys() == set(FILES) - left_out
    assert "num_classes: 2" in (output / "recipe.yaml").read_text()
    stored = json.loads(store.read(output / "checkpoints" / "last.safetensors")[1]["dataset"])["choice"]
    assert stored == PhotoChoice(
        val_share=0.25,
        ignore=("bird/1*",),
        class_map={"bird": "animal", "dog": "animal"},
        excluded=("cat/3.jpg",),
        kept=stored["kept"],
        max_pixels=2000,
    ).model_dump(mode="json")
    validation = measured(output)
    assert names(validation) == {name for name, split in splits.items() if split == "val"}
    assert validation.selection.names == ["animal", "cat"]
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert validation.result.metrics["loss"] == pytest.approx(last["loss"], abs=1e-6)
    assert names(measured(output, split="all")) == set(FILES) - left_out
    for number in range(20):
        (root / "cat" / f"new{number}.jpg").write_bytes(photo(number))
    later = names(measured(output))
    assert {name for name in later if "new" not in name} == names(validation)
    assert any("new" in name for name in later)


@pytest.mark.full
def test_a_resume_with_added_photos_is_refused_and_moves_no_photo(trained, root):
    output = trained("data.split={val: 1.0e-9}")
    before = table(output)
    assert Counter(before.values()) == {"train": 33, "val": 3}
    for label in ("bird", "cat", "dog"):
        for number in range(10):
            (root / label / f"new{number}.jpg").write_bytes(photo(number + ord(label[0]) * 100))
    more = ["length=6st", "data.split={val: 1.0e-9}", "runtime.seed=1"]
    with pytest.raises(
        DataError, match=r"33 training images then, 63 now, or other names\n.*--allow-changed length,r.*set$"
    ):
        trained(*more, allowed=("length", "runtime"))
    trained(*more, allowed=("length", "runtime", "dataset"))
    after = table(output)
    assert {name: split for name, split in after.items() if "new" not in name} == before
    assert Counter(after.values()) == {"train": 63, "val": 3}
    # Negative control: a fresh start chooses other photos.
    trained(*more, resume="never")
    assert {name for name, split in table(output).items() if split == "val"} != {
        name for name, split in before.items() if split == "val"
    }


@pytest.mark.full
def test_other_data_is_measured_with_the_choice_of_the_run(trained, tmp_path, capsys):
    output = trained("data.ignore=['*.gif']")
    assert capsys.readouterr().out.count("data.ignore match nothing") == 1
    other = make(tmp_path / "other", *(f"{split}/{name}" for split in ("test", "val") for name in FILES))
    assert len(names(measured(output, data=str(other), split="test"))) == 36
    assert len(names(measured(output, data=str(other)))) == 36
    assert "--split all" not in capsys.readouterr().out
    assert len(names(measured(output, data=str(other / "val")))) < 36
    assert "note: these photos are divided" in capsys.readouterr().out


@pytest.mark.full
def test_classes_without_validation_images_are_reported(trained, root, capsys):
    make(root, "only/1.jpg")
    output = trained()
    assert "classes without validation images: only" in capsys.readouterr().out
    assert measured(output).selection.names == ["bird", "cat", "dog", "only"]


def test_all_problems_come_in_one_message(trained, tmp_path):
    (tmp_path / "map.csv").write_text("a\nb,c,d\n")
    with pytest.raises(DataError, match=r"data\.class_map .*line 1 has 1 part; write `folder,class`"):
        trained(f"data.class_map={tmp_path}/map.csv")
    with pytest.raises(DataError) as caught:
        trained(f"data.root={make(tmp_path / 'one', 'a/1.jpg', 'a/2.jpg', 'a/3.jpg')}")
    assert "2 reasons" in str(caught.value)
    assert "has 1 class, a; a classifier needs" in str(caught.value)
    assert "2 training images are fewer than one step takes" in str(caught.value)
