from pathlib import Path

import pytest

from seresnext.data.formats import open_reader
from seresnext.data.readers import Reader, check_classes, check_same_classes, shown_classes
from seresnext.errors import DataError


def reader(root: Path, split: str, *classes: str) -> Reader:
    for name in classes:
        (root / split / name).mkdir(parents=True)
        (root / split / name / "1.jpg").write_bytes(b"")
    return open_reader(root, split)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (["ant", "bee", "cat"], ["ant", "cow", "dog"], r"only in training: bee, cat; only in validation: cow, dog"),
        ([f"c{number:02}" for number in range(14)], ["c00"], r"only in training: c01.*c10, ... and 3 more; a label"),
        (["K\u00e4fer"], ["Ka\u0308fer"], r"only in training: K\u00e4fer; only in validation: 'Ka\\u0308fer'"),
    ],
)
def test_differing_class_folders_are_listed_from_both_sides(tmp_path: Path, ours, theirs, message: str):
    train, val = reader(tmp_path, "train", *ours), reader(tmp_path, "val", *theirs)
    with pytest.raises(DataError, match=message):
        check_same_classes(train, val)
    check_same_classes(train, train)


def test_names_that_look_alike_are_shown_with_escapes():
    assert shown_classes(["caf\u00e9", "two words", "Bee"]) == "Bee, caf\u00e9, two words"
    alike = ["cafe\u0301", "two\u00a0words", "bee ", "b\u200bee"]
    assert shown_classes(alike) == r"'b\u200bee', 'bee ', 'cafe\u0301', 'two\xa0words'"


def test_one_class_is_no_advice_that_the_recipe_refuses(tmp_path: Path):
    with pytest.raises(DataError, match="1 class") as caught:
        check_classes(reader(tmp_path, "train", "ant"), 10, str(tmp_path))
    assert "model.num_classes=1" not in str(caught.value)


def test_a_model_with_another_number_of_classes_is_reported_the_right_one(tmp_path: Path):
    train = reader(tmp_path, "train", "ant", "bee")
    with pytest.raises(DataError, match=r"has 2 class.* 1000 classes; set model.num_classes=2 or correct data.root"):
        check_classes(train, 1000, str(tmp_path))
    check_classes(train, 2, str(tmp_path))
