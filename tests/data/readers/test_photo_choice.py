"""The choice of photos: from a recipe with its files, and from a checkpoint, which may come from a stranger."""

import json
from pathlib import Path

import pytest

from seresnext.data.readers.photo_choice import PhotoChoice, photo_choice, stored_choice
from seresnext.errors import CheckpointError, DataError
from seresnext.recipe.load import load_recipe

FULL = PhotoChoice(
    val_share=0.25, seed=7, ignore=("*.gif",), class_map={"a": ""}, excluded=("b/1.jpg",), kept={"00": "val"}
)


def choice(*settings: str, dataset=None) -> PhotoChoice | None:
    return photo_choice(load_recipe("digits", settings).recipe, dataset or {})


def test_a_recipe_without_the_keys_chooses_nothing():
    assert choice() is None
    assert choice("data.root=x.csv") is None
    found = choice("data.split={}", "runtime.seed=5", "data.max_pixels=9")
    assert found == PhotoChoice(val_share=0.2, seed=5, max_pixels=9)


def test_the_files_of_a_recipe_are_read(tmp_path: Path):
    (tmp_path / "map.csv").write_text("kitten, cat\n\nother,\n")
    (tmp_path / "list.txt").write_text(f"b/2.jpg\na/../a/1, x.jpg\n{tmp_path}/c/3.jpg\n")
    (tmp_path / "list.csv").write_text('path,reason\n"a/1, x.jpg",dark\nc/3.jpg,"blurred, empty"\nb/2.jpg,copy\n')
    keys = [f"data.root={tmp_path}", f"data.class_map={tmp_path}/map.csv", "data.ignore=['*.gif']"]
    for name in ("list.txt", "list.csv"):
        found = choice(*keys, f"data.exclude={tmp_path}/{name}")
        assert found == PhotoChoice(
            ignore=("*.gif",),
            class_map={"kitten": "cat", "other": ""},
            excluded=("a/1, x.jpg", "b/2.jpg", "c/3.jpg"),
            max_pixels=50_000_000,
        )


@pytest.mark.parametrize(("key", "text"), [("class_map", "kitten\n"), ("class_map", "a,b,c\n"), ("exclude", None)])
def test_a_file_that_cannot_be_read(tmp_path: Path, key: str, text: str | None):
    if text:
        (tmp_path / "file").write_text(text)
    with pytest.raises(DataError, match=r"data\.class_map .* line 1 has|cannot be read: No such file"):
        choice(f"data.{key}={tmp_path}/file")


def test_both_files_are_reported_at_once(tmp_path: Path):
    with pytest.raises(DataError, match=r"one cannot be read: .*\n.*two cannot be read: "):
        choice(f"data.class_map={tmp_path}/one", f"data.exclude={tmp_path}/two")


def test_a_resumed_run_keeps_the_splits_and_takes_new_lists(tmp_path: Path):
    (tmp_path / "list.txt").write_text("c/9.jpg\n")
    dataset = {"choice": FULL.model_dump(mode="json")}
    found = choice("data.split={val: 0.25}", f"data.exclude={tmp_path}/list.txt", "runtime.seed=8", dataset=dataset)
    expected = PhotoChoice(val_share=0.25, seed=7, excluded=("c/9.jpg",), kept=FULL.kept, max_pixels=50_000_000)
    assert found == expected


def test_a_stored_choice_returns():
    dataset = json.loads(json.dumps({"choice": FULL.model_dump(mode="json")}))
    assert stored_choice(dataset) == FULL.model_copy(update={"is_stored": True})
    assert stored_choice({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"val_share": 2.0}, {"val_share": "0.2"}, {"seed": -1}, {"seed": True}, {"ignore": [1]}, {"ignore": "x"},
        {"ignore": ["x"] * 1001}, {"class_map": {"a": 1}}, {"excluded": None}, {"more": 1},
        {"kept": {"00": "test"}}, {"max_pixels": 0}, {"max_pixels": 10**9},
    ],
)  # fmt: skip
def test_a_choice_that_no_run_writes_is_refused(change):
    with pytest.raises(CheckpointError, match="choice of photos that no run writes; use another file"):
        stored_choice({"choice": {**FULL.model_dump(mode="json"), **change}})
    for whole in (None, 1, [1], "text"):
        with pytest.raises(CheckpointError):
            stored_choice({"choice": whole})
