from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from advances import update_progress
from imagenet_archives import CLASSES, devkit, jpeg, tar, train_archive, truth_of, val_archive, write_archives

from seresnext.data.formats import open_reader
from seresnext.data.readers import imagenet as module
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.imagenet import ARCHIVES, DEVKIT, TRAIN, VAL, ImagenetReader
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.errors import DataError


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return write_archives(tmp_path / "archives")


@pytest.fixture
def extracted(archives: Path, tmp_path: Path) -> Path:
    """The same images as an image folder: extracted by tarfile, sorted by the standard recipe."""
    root = tmp_path / "extracted"
    with tarfile.open(archives / TRAIN.name) as outer:
        for entry in outer:
            with tarfile.open(fileobj=outer.extractfile(entry)) as inner:
                inner.extractall(root / "train" / entry.name.removesuffix(".tar"), filter="data")
    with tarfile.open(archives / VAL.name) as outer:
        for wordnet_id, name in zip(truth_of(), sorted(outer.getnames()), strict=True):
            (root / "val" / wordnet_id).mkdir(parents=True, exist_ok=True)
            file = outer.extractfile(name)
            assert file
            (root / "val" / wordnet_id / name).write_bytes(file.read())
    return root


# ------------------------------------------------------------------------------------------------ reads


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_and_labels_equal_the_extracted_folder(archives: Path, extracted: Path, split: str):
    ours, theirs = ImagenetReader(archives, split), torchvision.datasets.ImageFolder(extracted / split)
    assert list(ours.classes) == theirs.classes == sorted(CLASSES)
    assert ours.labels.tolist() == theirs.targets
    for index, (path, _) in enumerate(theirs.samples):
        assert ours.read(index) == Path(path).read_bytes()
        assert ours.name(index).endswith(f"/{Path(path).name}")
    assert ours.fingerprint == FolderReader(extracted, split).fingerprint


def test_names_say_where_an_image_is(archives: Path):
    assert ImagenetReader(archives, "train").name(0) == "ILSVRC2012_img_train.tar/n01440764.tar/n01440764_0.JPEG"
    names = {ImagenetReader(archives, "val").name(index) for index in range(12)}
    assert names == {f"ILSVRC2012_img_val.tar/ILSVRC2012_val_{n:08}.JPEG" for n in range(1, 13)}


def test_labels_go_by_file_name_not_by_place_in_the_archive(archives: Path):
    """The negative control: with the archive's own order the labels would be others."""
    reader = ImagenetReader(archives, "val")
    with tarfile.open(archives / VAL.name) as outer:
        order = outer.getnames()
    assert order != sorted(order)
    label_of = {reader.name(i).rpartition("/")[2]: reader.classes[label] for i, label in enumerate(reader.labels)}
    assert [label_of[name] for name in sorted(order)] == truth_of()
    assert [label_of[name] for name in order] != truth_of()


def test_long_names_are_kept(tmp_path: Path):
    name = f"{'x' * 150}.JPEG"
    root = tmp_path
    (root / TRAIN.name).write_bytes(tar({"n01440764.tar": tar({"a.JPEG": b"1", name: b"22"})}))
    reader = ImagenetReader(root, "train")
    assert [reader.name(i).rpartition("/")[2] for i in range(2)] == ["a.JPEG", name]
    assert [reader.read(i) for i in range(2)] == [b"1", b"22"]


def test_an_archive_replaced_with_its_size_and_time_kept_is_seen(tmp_path: Path):
    """`rsync -t` and `cp -p` replace files like this."""
    archive, seen = tmp_path / TRAIN.name, set()
    for name in ("a.JPEG", "b.JPEG"):
        archive.write_bytes(tar({"n01440764.tar": tar({name: b"1"})}))
        os.utime(archive, (1, 1))
        seen.add((archive.stat().st_size, ImagenetReader(tmp_path, "train").fingerprint))
    assert [size for size, _ in seen] == [20480, 20480]


def test_nothing_is_written_to_the_folder_of_the_archives(archives: Path):
    before = {path.name: path.stat().st_mtime_ns for path in archives.iterdir()}
    reader = ImagenetReader(archives, "train")
    reader.read(0)
    assert {path.name: path.stat().st_mtime_ns for path in archives.iterdir()} == before
    assert set(before) == {archive.name for archive in ARCHIVES}


def test_a_reader_is_cheap_to_send_and_holds_no_handle(archives: Path):
    reader = ImagenetReader(archives, "train")
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._files._descriptors == {}
    assert copy.read(7) == reader.read(7)
    assert copy.name(7) == reader.name(7)
    kept = [value for value in vars(reader).values() if isinstance(value, list | tuple | dict)]
    assert max(len(value) for value in kept) == len(CLASSES)


def test_forked_processes_read_the_same(archives: Path):
    reader = ImagenetReader(archives, "train")
    expected = [reader.read(index) for index in range(20)]
    read, write = os.pipe()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os.write(write, b"+" if [reader.read(index) for index in range(20)] == expected else b"-")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert os.read(read, 10) == b"+++"
    os.close(read)
    os.close(write)


# ------------------------------------------------------------------------------------------------ builds of the index


def test_the_index_is_built_once_and_again_for_other_archives(archives: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    first = ImagenetReader(archives, "val", cache)
    (built,) = cache.glob("*.index")
    inode = built.stat().st_ino
    ImagenetReader(archives, "val", cache)
    assert built.stat().st_ino == inode
    truth = truth_of(per_class=4)
    (archives / VAL.name).write_bytes(val_archive(len(truth)))
    (archives / DEVKIT.name).write_bytes(devkit(truth))
    assert len(ImagenetReader(archives, "val", cache)) == 16
    assert len(first) == 12
    # Only the labels change: the kit is a part of the signature.
    (archives / DEVKIT.name).write_bytes(devkit(truth[::-1]))
    again = ImagenetReader(archives, "val", cache)
    by_name = sorted((again.name(i), again.classes[label]) for i, label in enumerate(again.labels))
    assert [wordnet_id for _, wordnet_id in by_name] == truth[::-1]
    # The first index stays, because another machine may use it, and serves the first archives again.
    assert built.stat().st_ino == inode
    assert len(list(cache.glob("*.index"))) == 3


@pytest.mark.parametrize(("split", "pieces"), [("train", len(CLASSES)), ("val", 12)])
def test_progress_covers_the_whole_archive(archives: Path, monkeypatch: pytest.MonkeyPatch, split: str, pieces: int):
    bars = update_progress(module, monkeypatch)
    reader = ImagenetReader(archives, split)
    (bar,) = bars
    assert bar.label == f"index of {reader._path.name}"
    assert bar.total == reader._path.stat().st_size
    bar.assert_adds_up(pieces)


def test_an_archive_replaced_during_the_run_is_not_read(archives: Path):
    reader = ImagenetReader(archives, "train")
    (archives / TRAIN.name).write_bytes(train_archive(per_class=7))
    fresh = pickle.loads(pickle.dumps(reader))
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar/n01440764.tar/.* cannot be read: it has changed"):
        fresh.read(0)
    (archives / TRAIN.name).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        pickle.loads(pickle.dumps(fresh)).read(0)


# ------------------------------------------------------------------------------------------------ refusals


def test_missing_files_are_named_with_what_is_needed(archives: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar cannot be read: No such file.*devkit_t12.tar.gz"):
        ImagenetReader(tmp_path, "train")
    (archives / DEVKIT.name).unlink()
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit_t12.tar.gz cannot be read: No such file"):
        ImagenetReader(archives, "val")
    with pytest.raises(DataError, match="no split 'test'; give train or val"):
        ImagenetReader(archives, "test")


def refusal(root: Path, split: str = "train", **options: bool) -> str:
    with pytest.raises(DataError) as caught:
        ImagenetReader(root, split, **options)
    return str(caught.value)


def test_every_cut_of_the_training_archive_is_noticed(tmp_path: Path):
    content = train_archive(CLASSES[:2], 2)
    for cut in range(0, len(content) - 10240, 1024):
        (tmp_path / TRAIN.name).write_bytes(content[:cut])
        assert "cut off" in refusal(tmp_path)


def test_faults_inside_a_class_are_named(tmp_path: Path):
    inner = tar([("a.JPEG", b"1"), ("a.JPEG", b"2")])
    (tmp_path / TRAIN.name).write_bytes(tar({"n01440764.tar": inner}))
    assert "ILSVRC2012_img_train.tar: n01440764.tar: member 'a.JPEG' is there twice" in refusal(tmp_path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("b.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / TRAIN.name).write_bytes(tar({"n01440764.tar": buffer.getvalue()}))
    assert "n01440764.tar: member 'b.JPEG' is a symbolic link" in refusal(tmp_path)
    (tmp_path / TRAIN.name).write_bytes(tar({"n01440764.tar": inner[:1024]}))
    assert "n01440764.tar is cut off after member 'a.JPEG'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train/n01440764.tar": b""}, "member 'train/n01440764.tar' is no archive of a class"),
        ({"n01440764_10026.JPEG": b""}, "member 'n01440764_10026.JPEG' is no archive of a class"),
        ({"n01440764.tar": tar({})}, "n01440764.tar holds no images"),
        ({"n01440764.tar": tar({"deep/a.JPEG": b"1"})}, "member 'deep/a.JPEG' is in a folder"),
        ({}, "holds no images"),
    ],
)
def test_archives_of_another_form_are_refused(tmp_path: Path, content: dict[str, bytes], message: str):
    (tmp_path / TRAIN.name).write_bytes(tar(content))
    assert message in refusal(tmp_path)


def test_validation_images_must_match_the_kit(archives: Path):
    truth = truth_of()
    (archives / DEVKIT.name).write_bytes(devkit(truth[:-1]))
    assert "holds 12 images, and the development kit the classes of 11" in refusal(archives, "val")
    (archives / DEVKIT.name).write_bytes(devkit(truth))
    images = {f"ILSVRC2012_val_{n:08}.JPEG": jpeg(n) for n in range(1, 13)}
    for old, new in [("00000005", "00000013"), ("00000001", "1"), ("00000012", "00000012x")]:
        changed = {name.replace(old, new): data for name, data in images.items()}
        (archives / VAL.name).write_bytes(tar(changed))
        assert "labels follow these numbers" in refusal(archives, "val")


def test_published_archives_must_hold_the_published_classes(archives: Path):
    message = refusal(archives, official=True)
    assert "has 4 classes, the challenge 1000 (missing: n01443537, n01484850" in message
    assert "has 4 classes" in refusal(archives, "val", official=True)


def test_counts_of_published_archives(tmp_path: Path):
    """All 1,000 classes, and then the number of images: both are asked of an archive of the published size alone."""
    ids = all_ids()
    (tmp_path / TRAIN.name).write_bytes(tar({f"{name}.tar": tar({"a.JPEG": b"1"}) for name in ids}))
    assert "holds 1,000 images, the challenge 1,281,167" in refusal(tmp_path, official=True)
    assert len(ImagenetReader(tmp_path, "train").classes) == 1000
    odd = [*ids[:-1], "n99999999"]
    (tmp_path / TRAIN.name).write_bytes(tar({f"{name}.tar": tar({"a.JPEG": b"1"}) for name in odd}))
    message = refusal(tmp_path, official=True)
    assert "missing: n15075141; unknown: n99999999" in message


def test_each_class_has_fifty_validation_images(tmp_path: Path):
    truth = [name for name in all_ids() for _ in range(50)]
    names = [f"ILSVRC2012_val_{n:08}.JPEG" for n in range(1, 50_001)]
    (tmp_path / VAL.name).write_bytes(tar([(name, b"") for name in names]))
    (tmp_path / DEVKIT.name).write_bytes(devkit(truth))
    reader = ImagenetReader(tmp_path, "val", official=True)
    assert np.bincount(reader.labels).tolist() == [50] * 1000
    assert reader.classes[0] == "n01440764"
    truth[0] = truth[-1]
    (tmp_path / DEVKIT.name).write_bytes(devkit(truth))
    assert "n01440764 has 49 images, not 50" in refusal(tmp_path, "val", official=True)
    assert len(ImagenetReader(tmp_path, "val", official=False)) == 50_000


def all_ids() -> list[str]:
    return [row.wordnet_id for row in imagenet_classes()]


def test_a_size_decides_whether_counts_are_known(archives: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(ImagenetReader(archives, "train").classes) == 4
    published = TRAIN._replace(size=(archives / TRAIN.name).stat().st_size)
    monkeypatch.setattr(module, "_SPLITS", {"train": (published,)})
    assert "has 4 classes, the challenge 1000" in refusal(archives)


def test_an_image_folder_is_asked_for_where_archives_are(archives: Path):
    with pytest.raises(DataError, match=r"holds ImageNet's archives and no folder val.*data.format=imagenet"):
        open_reader(archives, "val")
    assert len(open_reader(archives, "val", "imagenet")) == 12
