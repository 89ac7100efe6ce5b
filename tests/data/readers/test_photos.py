"""Photographs: class folders, splits, lists, patterns, and the division into training and validation."""

import csv
import hashlib
import io
import shutil
from pathlib import Path

import pytest
from photographs import make, names, photo

from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.readers.photos import PhotoReader, read_photo_list, split_table
from seresnext.errors import DataError

MANY = [f"{label}/{number:02}.jpg" for label in ("cat", "dog") for number in range(40)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def notices(root: Path, cache: Path, split: str = "train", **choice) -> str:
    return "\n".join(PhotoReader(root, split, PhotoChoice(**choice), cache).notices)


# ------------------------------------------------------------------------------------------------ layouts


def test_a_layout_with_splits_reads_as_with_the_folder_reader(root, cache):
    make(root, *(f"{split}/{label}/{n}.jpg" for split in ("train", "val") for label in ("b", "a") for n in (10, 9, 2)))
    for split in ("train", "val"):
        ours, theirs = PhotoReader(root, split, cache=cache), FolderReader(root, split, cache)
        assert ours.classes == theirs.classes
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [ours.name(i) for i in range(6)] == [theirs.name(i) for i in range(6)]
        assert [ours.read(i) for i in range(6)] == [theirs.read(i) for i in range(6)]


@pytest.mark.parametrize(
    ("files", "found", "classes", "notice"),
    [
        ("train/a/1 valid/a/2 test/a/3", {"train": [0], "val": [1], "valid": [1], "test": [2]}, "a", ""),
        ("train/a/1 validation/a/2 test/a/3", {"train": [0], "val": [1], "validation": [1], "all": [0, 1, 2]}, "a", ""),
        ("Train/a/1 Train/b/2 VALID/a/3 Test/b/4", {"train": [0, 1], "val": [2], "test": [3]}, "a b", ""),
        ("one/a/1 two/a/2 valid/a/3", {"one": [0]}, "a", ""),  # A split of any name, as in data.train_split.
        ("train/a/1 val/a/2 valid/a/3 train/4", {"train": [0], "val": [1]}, "a", "splits are left out (1)"),
        ("train/a/deep/1 val/a/2", {"train": [0], "val": [1]}, "a", ""),
        ("a/x/y/1 a/2 train/3 test/4", {"all": [0, 1, 2, 3]}, "a test train", ""),  # Here train and test are classes.
        ("a/1 b/2 loose a/._1 .hidden/3", {"all": [0, 1]}, "a b", "class folders are left out (1), such as loose"),
    ],
)
def test_folders_are_splits_and_classes(root, cache, files, found, classes, notice):
    files = files.split()
    make(root, *files)
    for split, numbers in found.items():
        reader = PhotoReader(root, split, PhotoChoice(val_share=0.5), cache)
        assert {reader.name(index) for index in range(len(reader))} == {files[number] for number in numbers}
        assert reader.classes == tuple(classes.split())
        assert f"photos outside of {notice}" in "\n".join(reader.notices) or not notice


# ------------------------------------------------------------------------------------------------ division


def hashed(content: bytes, seed: int) -> bytes:
    return hashlib.blake2b(hashlib.sha256(content).digest()[:16], digest_size=8, key=seed.to_bytes(8, "big")).digest()


def oracle(content: bytes, seed: int, share: float) -> str:
    number = sum(byte / 256 ** (place + 1) for place, byte in enumerate(hashed(content, seed)))
    return "val" if number < share else "train"


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_hash_of_seed_and_content_decides(root, cache, seed):
    make(root, *MANY)
    for split in ("train", "val"):
        found = set(names(root, split, cache, val_share=0.2, seed=seed))
        assert found == {name for name in MANY if oracle((root / name).read_bytes(), seed, 0.2) == split}
    assert sorted(names(root, "all", cache, val_share=0.2, seed=seed)) == MANY


def test_photos_that_are_added_or_renamed_move_no_others(root, cache):
    make(root, *MANY)
    before = set(names(root, "val", cache, val_share=0.2))
    for number in range(40):
        (root / "cat" / f"new{number}.jpg").write_bytes(photo(5000 + number))
    (root / "dog").rename(root / "hound")
    after = set(names(root, "val", cache, val_share=0.2))
    assert {name.replace("hound", "dog") for name in after if "new" not in name} == before
    assert any("new" in name for name in after)


def test_copies_stay_together_also_in_another_class(root, cache):
    make(root, *MANY, *(f"copies/{number}.jpg={1000 + number}" for number in range(40)))
    val = names(root, "val", cache, val_share=0.2)
    originals = {(root / name).read_bytes() for name in val if "cat" in name}
    assert {(root / name).read_bytes() for name in val if "copies" in name} == originals


def test_small_classes(root, cache):
    """A class without a validation photo gives the lowest hash; the last photo of a class stays in training."""
    make(root, *MANY, "one/1.jpg", "two/1.jpg", "two/2.jpg", "same/1.jpg=7", "same/2.jpg=7")
    val = PhotoReader(root, "val", PhotoChoice(val_share=1e-9), cache)
    assert val.classes == ("cat", "dog", "one", "same", "two")
    assert sorted(val.labels.tolist()) == [0, 1, 4]
    assert "classes without validation images: one, same" in "\n".join(val.notices)
    assert val.name(0) == min(MANY[:40], key=lambda name: hashed((root / name).read_bytes(), 0))
    high = names(root, "train", cache, val_share=1 - 1e-9)
    assert {name.partition("/")[0] for name in high} == {"cat", "dog", "one", "two", "same"}
    assert high[0] == max(MANY[:40], key=lambda name: hashed((root / name).read_bytes(), 0))


def test_kept_splits_stay_when_photos_are_added(root, cache):
    make(root, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    first = PhotoReader(root, "val", PhotoChoice(val_share=1e-9), cache)
    kept = [first.name(i) for i in range(len(first))]
    assert len(first.choice.kept) == 2
    make(root, *(f"a/new{number}.jpg={number}" for number in range(50)))
    assert set(kept) <= set(names(root, "val", cache, val_share=1e-9, kept=first.choice.kept))
    assert not set(kept) <= set(names(root, "val", cache, val_share=1e-9))  # Negative control: a lower hash came.


def test_data_with_validation_photos_is_not_divided(root, cache):
    make(root, *(f"train/{name}" for name in MANY), "val/cat/1.jpg")
    reader = PhotoReader(root, "val", PhotoChoice(val_share=0.5), cache)
    assert len(reader) == 1
    assert "classes without validation images: dog" in "\n".join(reader.notices)
    shutil.rmtree(root / "val")
    assert len(names(root, "val", cache, val_share=0.5)) > 20  # `train` is divided.
    make(root, *(f"test/{name}" for name in MANY))
    assert names(root, "test", cache, val_share=0.5) == [f"test/{name}" for name in MANY]
    assert not any(name.startswith("test") for name in names(root, "val", cache, val_share=0.5))


@pytest.mark.parametrize(
    ("place", "split", "share", "message"),
    [
        ("", "val", None, r"no photos of the split val \(found 2 train\); add photos of val, or set data"),
        ("", "test", None, r"no photos of the split test \(found 2 train\); name another split"),
        ("", "val", 0.5, r"no photos of the split val \(found 2 train\); add photos"),
        ("a", "train", None, "has no photos in class folders; give a folder with a folder for each class"),
        ("none", "val", None, "there is no folder"),
    ],
)
def test_a_split_that_is_missing_is_an_error_with_the_fix(root, cache, place, split, share, message):
    make(root, "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match=message):
        PhotoReader(root / place, split, PhotoChoice(val_share=share), cache)


# ------------------------------------------------------------------------------------------------ choice


def test_patterns_leave_out_files_and_folders(root, cache):
    make(root, "a/1.jpg", "a/1_copy.jpg", "a/drafts/2.jpg", "b/3.jpg", "b/4.JPG")
    assert names(root, "all", cache, ignore=["*_copy*", "drafts", "b/4*"]) == ["a/1.jpg", "b/3.jpg"]
    assert "entries of data.ignore match nothing (1), such as *.gif" in notices(root, cache, ignore=["*.gif"])
    assert notices(root, cache, ignore=["*.gif"], is_stored=True) == ""


def test_classes_are_renamed_merged_and_left_out(root, cache):
    make(root, "cat/1.jpg", "kitten/2.jpg", "dog/3.jpg", "other/4.jpg")
    reader = PhotoReader(root, "all", PhotoChoice(class_map={"kitten": "cat", "dog": "hound", "other": ""}), cache)
    assert reader.classes == ("cat", "hound")
    assert [reader.name(index) for index in range(3)] == ["cat/1.jpg", "kitten/2.jpg", "dog/3.jpg"]
    assert "entries of data.class_map match nothing (1), such as Dog" in notices(root, cache, class_map={"Dog": "x"})


def test_photos_are_excluded_by_path(root, cache):
    make(root, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/\udcff.jpg")
    assert names(root, "all", cache, excluded=["a/2.jpg", "b/\\udcff.jpg"]) == ["a/1.jpg", "b/3.jpg"]
    found = notices(root, cache, excluded=["a/2.jpg", "a/9.jpg", "a/8.jpg"])
    assert "entries of data.exclude match nothing (2), such as a/8.jpg" in found
    (root / "a" / "bad.jpg").write_bytes(b"<html>")
    assert "unreadable photos are left out (1)" in notices(root, cache)
    assert notices(root, cache, excluded=["a/bad.jpg"]) == ""  # A photo that was excluded is not named again.


def test_a_choice_changes_the_fingerprint_and_so_does_the_content(root, cache):
    make(root, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    choices = [{}, {"excluded": ["a/2.jpg"]}, {"class_map": {"b": "c"}}, {"class_map": {"b": "a"}}]
    found = [PhotoReader(root, "all", PhotoChoice(**choice), cache).fingerprint for choice in choices]
    (root / "a" / "2.jpg").write_bytes(photo(99))
    found.append(PhotoReader(root, "all", cache=cache).fingerprint)
    assert len(set(found)) == 5
    assert PhotoReader(shutil.copytree(root, root.parent / "copy"), "all", cache=cache).fingerprint == found[-1]


# ------------------------------------------------------------------------------------------------ files


def test_unreadable_photos_are_named_and_other_files_are_counted(root, cache):
    make(root, "a/1.jpg", "a/2.jfif", "b/3", "b/4.txt", "b/\x1b[2J.jpg")
    (root / "a" / "empty.jpg").touch()
    (root / "a" / "cut.jpg").write_bytes(photo(1)[:200])
    (root / "b" / "\x1b[2J.jpg").write_bytes(b"<html>")
    (root / "b" / "film.mov").write_bytes(b"\0\0\0\x18ftypqt  ")
    (root / "b" / "film2.mov").write_bytes(b"\0\0\0\x18ftypqt  ")
    (root / "b" / "notes.md").write_bytes(b"# notes")
    for _ in range(2):  # The second start reads no photo.
        reader = PhotoReader(root, "all", cache=cache)
        assert [reader.name(index) for index in range(4)] == ["a/1.jpg", "a/2.jfif", "b/3", "b/4.txt"]
        skipped, unreadable = (notice.removeprefix(f"{root}: ") for notice in reader.notices[:2])
        assert skipped == "skipped files: 2 .mov (a video), 1 .md (a text)"
        heading, *lines = unreadable.split("\n  ")
        assert heading == "unreadable photos are left out (3):"
        assert lines[1] == "a/empty.jpg is empty"
        assert "a/cut.jpg is no JPEG image" in lines[0]
        assert lines[2] == "b/\\x1b[2J.jpg is an HTML page, no image"


def test_the_table_of_splits(root, cache):
    make(root, 'a/"1",x.jpg', "a/\udcff.jpg", "b/3.jpg", "b/4.jpg")
    train, val = (PhotoReader(root, split, PhotoChoice(val_share=1e-9), cache) for split in ("train", "val"))
    rows = list(csv.DictReader(io.StringIO(split_table(train, val))))
    assert sorted(row["path"] for row in rows) == sorted(['a/"1",x.jpg', "a/\\udcff.jpg", "b/3.jpg", "b/4.jpg"])
    assert [(row["label"], row["split"]) for row in rows] == [
        ("a", "train"),
        ("b", "train"),
        ("a", "val"),
        ("b", "val"),
    ]


# ------------------------------------------------------------------------------------------------ lists


def test_a_list_gives_paths_classes_and_splits(root, cache, monkeypatch):
    make(root, "x/1.jpg", "x/2.jpg", "y/3.jpg", "4.jpg")
    lines = ["path,label,split", "x/1.jpg,a,train", "x/2.jpg,a,valid", "y/3.jpg,b,", f"{root}/4.jpg,b,test"]
    (root / "list.csv").write_text("\n".join(lines))
    assert names(root / "list.csv", "train", cache, val_share=0.5) == ["x/1.jpg", "y/3.jpg"]
    val = PhotoReader(root / "list.csv", "val", cache=cache)
    assert [val.name(0), val.classes, val.read(0)] == ["x/2.jpg", ("a", "b"), (root / "x" / "2.jpg").read_bytes()]
    assert PhotoReader(root / "list.csv", "test", cache=cache).read(0) == (root / "4.jpg").read_bytes()
    monkeypatch.chdir("/")
    assert names(root / "list.csv", "test", cache) == [f"{root}/4.jpg"]
    (root / "x" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"x/2.jpg cannot be read: No such file or directory; restore the file"):
        val.read(0)


def test_a_list_without_splits_is_divided_like_folders(root, cache):
    make(root, *MANY)
    (root.parent / "all.jsonl").write_text(
        "".join(f'{{"path": "photos/{name}", "label": "{name[:3]}"}}\n' for name in reversed(MANY))
    )
    for split in ("train", "val"):
        found = names(root.parent / "all.jsonl", split, cache, val_share=0.2)
        assert [name.removeprefix("photos/") for name in found] == names(root, split, cache, val_share=0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg", "a b.jpg", "ä,.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, text: str | bytes, name: str = "list.csv") -> dict[str, tuple[str, str]]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_photo_list(folder / name)


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\n2.jpg,b,Validation\n1.jpg,a,\n",
        "\ufeffPath;LABEL;split;note\r\n2.jpg;b;val;x\r\n\r\n1.jpg;a;;y\r\n",
        '"path","label","split"\r\n"1.jpg","a",""\r\n"2.jpg","b","val"\r\n',
        "split\tlabel\tpath\nvalid\tb\t2.jpg\n\ta\t1.jpg",
    ],
)
def test_csv_of_other_programs(folder, text):
    assert list(read(folder, text).items()) == [("1.jpg", ("a", "train")), ("2.jpg", ("b", "val"))]


def test_quotes_spaces_and_numbers(folder):
    found = read(folder, 'label,path\n"a, b",a b.jpg\n7,"ä,.jpg"\n')
    assert found == {"a b.jpg": ("a, b", "train"), "ä,.jpg": ("7", "train")}
    lines = '{"path": "1.jpg", "label": 7, "split": "test"}\n\n{"label": "x", "path": "2.jpg", "split": null}\n'
    assert read(folder, lines, "list.JSONL") == {"1.jpg": ("7", "test"), "2.jpg": ("x", "train")}
    assert read(folder, '{"path": "1.jpg", "label": 0}', "list.jsonl") == {"1.jpg": ("0", "train")}


def test_all_mistakes_come_at_once_with_the_lines(folder):
    with pytest.raises(DataError) as caught:
        read(folder, "path,label,split\n1.jpg,a,train\nnone.jpg,a,\n,a,\n2.jpg,,dev\n1.jpg,b,val\n2.jpg,a,b,c\n..,a,\n")
    heading, *lines = str(caught.value).split("\n  ")
    assert heading == f"{folder}/list.csv cannot be used; correct 7 mistakes:"
    assert lines == [
        "line 3: there is no file none.jpg",
        "line 4: path is missing",
        "line 5: label is missing",
        "line 5: split is dev, not train, val, valid, validation, test",
        "line 6: 1.jpg is in line 2, too",
        "line 7: more than 3 values",
        "line 8: there is no file ..",
    ]


def test_mistakes_of_json_lines(folder):
    with pytest.raises(DataError) as caught:
        read(folder, '{"path": "1.jpg", "label": "a"}\n{"path"\n["1.jpg"]\n' + "[" * 100_000, "list.jsonl")
    lines = str(caught.value).split("\n  ")[1:]
    assert [line.partition(" (")[0] for line in lines] == [
        "line 2: this is not JSON",
        "line 3: this is no JSON object with path and label",
        "line 4: this is not JSON",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg,a\n", "has the columns 1.jpg, a in the first line; name the columns path, label"),
        ("", "has the columns - in the first line"),
        ("path,label\n", "lists no photos; write a line with path and label"),
        (b"path,label\n\xff.jpg,a\n", r"list.csv:2 is not UTF-8 \(byte 0xff\); save as UTF-8"),
        ('path,label\n"1.jpg,a\n', r"line [23]: this is not CSV \(unexpected end of data\)"),
        ("path,label\n\x1b[2J.jpg,a\n", r"there is no file \\x1b\[2J.jpg"),
    ],
)
def test_a_list_that_cannot_be_used(folder, text, message):
    with pytest.raises(DataError, match=message):
        read(folder, text)


def test_many_mistakes_are_a_screen(folder):
    with pytest.raises(DataError, match=r"correct 499 mistakes:(\n  .*){10}\n  ... and 489 more$"):
        read(folder, "path,label\n" + "x,y\n" * 250)
