from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from imagenet_archives import write_archives
from photographs import make

from seresnext.data.formats import READERS, detect_format, open_reader
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photos import PhotoReader
from seresnext.errors import DataError
from seresnext.recipe.schema import DataSection


def test_the_schema_accepts_the_formats_of_the_table():
    assert get_args(DataSection.model_fields["format"].annotation) == (*READERS, "synthetic")


@pytest.mark.parametrize(
    ("format", "files", "detected"),
    [
        ("folder", ["val/a/1.jpg"], "folder"),
        ("folder", ["ILSVRC2012_img_val.tar"], "imagenet"),
        ("folder", ["ILSVRC2012_img_val.tar", "val/a/1.jpg"], "folder"),
        ("imagenet", ["val/a/1.jpg"], "folder"),
        ("imagenet", ["ILSVRC2012_img_val.tar"], "imagenet"),
        ("imagenet", [], "imagenet"),
        ("folder", ["val/index.json"], "shards"),
        ("shards", ["val/a/1.jpg"], "folder"),
    ],
)
def test_a_format_that_was_not_given_is_detected(tmp_path: Path, format: str, files: list[str], detected: str):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert detect_format(tmp_path, "val", format) == detected
    assert detect_format("https://host/x", "val", format) == "shards"
    assert detect_format(tmp_path, 300 * "x", "folder") == "folder"  # A name that is too long is no folder.


@pytest.mark.parametrize(
    ("files", "choice", "reader"),
    [
        (["train/a/1.jpg", "val/a/2.jpg"], None, FolderReader),
        (["train/a/1.jpg", "val/a/2.jpg", "valid/a/3.jpg"], None, FolderReader),
        (["train/a/1.jpg", "val/a/2.jpg"], PhotoChoice(), PhotoReader),
        (["train/a/1.jpg", "valid/a/2.jpg"], None, PhotoReader),
        (["train/a/1.jpg", "validation/a/2.jpg"], None, PhotoReader),
        (["a/1.jpg", "a/2.jpg"], PhotoChoice(val_share=0.5), PhotoReader),
    ],
)
def test_photos_have_a_reader_of_their_own(tmp_path: Path, files: list[str], choice: PhotoChoice, reader: type):
    """Data in the layout of ImageNet keeps the reader that opens no image."""
    root = make(tmp_path / "data", *files)
    for split in ("train", "val"):
        assert type(open_reader(root, split, choice=choice, cache=tmp_path)) is reader


@pytest.mark.parametrize("format", ["folder", "photos", "imagenet"])
def test_a_reader_holds_no_object_per_image(tmp_path: Path, format: str):
    """The reference counts of objects would copy the objects into each worker."""
    if format == "imagenet":
        write_archives(tmp_path, per_class=20)
    else:
        make(tmp_path, *(f"train/a/{number}.jpg" for number in range(90)), "train/b/1.jpg")
    choice = PhotoChoice() if format == "photos" else None
    reader = open_reader(tmp_path, "train", "folder" if choice else format, tmp_path / "cache", choice)
    kept = [value for value in vars(reader).values() if isinstance(value, list | tuple | dict)]
    assert max(map(len, kept)) <= 4 < len(reader)
    assert isinstance(reader.labels, np.ndarray)


def test_all_photos_of_a_folder_without_splits(tmp_path: Path):
    root = make(tmp_path / "data", "a/1.jpg", "b/2.jpg")
    assert len(open_reader(root, "all", cache=tmp_path)) == 2
    with pytest.raises(DataError, match=r"no split 'val' \(found a, b\); .* data\.split='{val: 0\.2}' divides"):
        open_reader(root, "val", cache=tmp_path)
    make(root, "all/c/3.jpg")
    assert type(open_reader(root, "all", cache=tmp_path)) is FolderReader


def test_a_list_of_photos_is_data(tmp_path: Path):
    (make(tmp_path, "1.jpg") / "list.csv").write_text("path,label\n1.jpg,a\n")
    assert open_reader(tmp_path / "list.csv", "train", cache=tmp_path).classes == ("a",)
    for missing in ("none.csv", "none.jsonl"):
        with pytest.raises(DataError, match=f"there is no file .*{missing}; give the folder of the images, or a list"):
            open_reader(tmp_path / missing, "train", cache=tmp_path)
