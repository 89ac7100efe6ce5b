"""The classes of a validation, for folders by name, WordNet id or number."""

from pathlib import Path

import pytest

from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.readers.photo_choice import read_class_map
from seresnext.errors import DataError, UsageError
from seresnext.run.class_selection import read_class_names, select_classes

IDS = [row.wordnet_id for row in imagenet_classes()]
NUMBERS = sorted(map(str, range(1000)))  # As folders are sorted: 0, 1, 10, 100, ...


def test_all_classes_of_the_model_in_any_order() -> None:
    found = select_classes(["a", "b", "c"], "D", 3, ["c", "a", "b"])
    assert (found.labels, found.columns, found.names, found.notice) == ([1, 2, 0], None, ["c", "a", "b"], None)


@pytest.mark.parametrize("names", [None, IDS])
def test_imagenets_classes_by_id_and_by_number(names: list[str] | None) -> None:
    assert select_classes(IDS, "D", 1000, names).labels == list(range(1000))
    found = select_classes(NUMBERS, "D", 1000, names)  # ImageNet-V2
    assert found.labels == [int(number) for number in NUMBERS]
    assert found.names == IDS


@pytest.mark.parametrize("names", [None, IDS])
def test_some_of_imagenets_classes(names: list[str] | None) -> None:
    """ImageNet-A and ImageNet-R have 200 folders with WordNet ids."""
    found = select_classes(IDS[5:205], "D", 1000, names)
    assert found.columns == list(range(5, 205))
    assert found.names == IDS[5:205]
    assert "200 of ImageNet's classes" in str(found.notice)
    assert select_classes(["7", "999"], "D", 1000, names).columns == [7, 999]


@pytest.mark.parametrize("width", [1, 4])
def test_numbers_are_the_labels_of_weights_without_names(width: int) -> None:
    folders = sorted(f"{number:0{width}d}" for number in range(12))
    found = select_classes(folders, "D", 12, None)
    assert found.labels == [int(folder) for folder in folders]
    assert "the class folders of D are numbers: each number is the label, 0 to 11" in str(found.notice)


@pytest.mark.parametrize("folders", [["ant", "bee", "cat"], ["1", "2", "3"], ["0", "1", "1x"], ["0", "00", "1"]])
def test_other_names_without_names_are_in_text_order_and_reported(folders: list[str]) -> None:
    found = select_classes(folders, "D", 3, None)
    assert found.labels == [0, 1, 2]
    assert f"are taken in text order: labels 0, 1 and so on are {', '.join(folders)}" in str(found.notice)


@pytest.mark.parametrize("other", ["n99999999", "007", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_a_thousand_folders_without_names_are_imagenets(other: str) -> None:
    for folders in ([*IDS[1:], other], [*NUMBERS[:-1], other]):
        with pytest.raises(DataError, match=r"D has 1000 class folders such as .* 999; rename") as caught:
            select_classes(sorted(folders), "D", 1000, None)
        assert len(str(caught.value)) < 1000


def test_a_map_by_name_and_by_number() -> None:
    found = select_classes(
        ["dogs", "puppies", "x"], "D", 4, ["cat", "dog", "e", "f"], {"dogs": "dog", "puppies": "1", "x": "3"}
    )
    assert (found.labels, found.columns, found.names) == ([1, 1, 3], [1, 3], ["dog", "f"])


@pytest.mark.parametrize(
    ("folders", "classes", "names", "class_map", "words"),
    [
        (["a", "c"], 2, ["a", "b"], None, "only here: c; only there: b.*--class-map"),
        (["a"], 2, ["a", "b"], None, "only there: b"),
        (["a", "b"], 3, None, None, "2 class folders, and the model has 3"),
        (["n01440764", "x"], 1000, None, None, "2 class folders"),
        (["1000", "2"], 1000, None, None, "the class 1000, which"),
        (["02", "2"], 1000, None, None, "2 class folders, and the model has 1000"),
        (["a", "b"], 2, ["a", "b"], {"a": "a"}, "no line for b"),
        (["a", "b"], 2, ["a", "b"], {"a": "a", "b": "z"}, "the class z, which"),
        (["a", "b"], 2, None, {"a": "0", "b": "2"}, "the class 2, which"),
    ],
)  # fmt: skip
def test_classes_that_do_not_fit(folders, classes, names, class_map, words) -> None:
    with pytest.raises(DataError, match=words):
        select_classes(folders, "D", classes, names, class_map)


def test_files_of_classes(tmp_path: Path) -> None:
    (tmp_path / "map").write_text('a,0\n\n"b,c",dog\n')
    assert read_class_map(tmp_path / "map") == {"a": "0", "b,c": "dog"}
    (tmp_path / "map").write_text("n2\nn1\n")
    assert read_class_map(tmp_path / "map") == {"n2": "0", "n1": "1"}
    assert read_class_names(str(tmp_path / "map")) == ["n2", "n1"]
    assert read_class_names("cat, dog") == ["cat", "dog"]
    with pytest.raises(UsageError, match="1 different classes"):
        read_class_names("cat,cat")


@pytest.mark.parametrize(
    ("text", "words"), [("a,1\na,2\n", "line 2 repeats"), ("a,1,2\n", "line 1 has 3 parts"), (None, "cannot be read")]
)
def test_a_map_that_is_wrong(tmp_path: Path, text: str | None, words: str) -> None:
    if text:
        (tmp_path / "map").write_text(text)
    with pytest.raises(DataError, match=words):
        read_class_map(tmp_path / "map")
