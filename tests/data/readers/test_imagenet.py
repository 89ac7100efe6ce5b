import os
import tarfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torchvision
from imagenet_archives import CLASSES, VAL_CLASSES, devkit, extract, jpeg, special, tar, train_archive, write_archives

from seresnext.data.formats import open_reader
from seresnext.data.readers import imagenet as module
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.imagenet import ARCHIVES, DEVKIT, TRAIN, VAL, ImagenetReader
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.errors import DataError


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return write_archives(tmp_path / "archives")


def with_classes(root: Path, classes: Mapping[str, bytes]) -> Path:
    """A folder with a training archive of class archives."""
    (root / TRAIN.name).write_bytes(tar({f"{name}.tar": content for name, content in classes.items()}))
    return root


# ------------------------------------------------------------------------------------------------ reads


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_and_labels_equal_the_extracted_folder(archives: Path, tmp_path: Path, split: str):
    extracted = extract(archives, tmp_path / "extracted")
    ours, theirs = ImagenetReader(archives, split), torchvision.datasets.ImageFolder(extracted / split)
    assert list(ours.classes) == theirs.classes == sorted(CLASSES)
    assert ours.labels.tolist() == theirs.targets
    for index, (path, target) in enumerate(theirs.samples):
        assert ours.read(index) == Path(path).read_bytes()
        inner = f"{theirs.classes[target]}.tar/" if split == "train" else ""
        assert ours.name(index) == f"ILSVRC2012_img_{split}.tar/{inner}{Path(path).name}"
    with tarfile.open(archives / f"ILSVRC2012_img_{split}.tar") as outer:  # By place, labels would be others.
        assert outer.getnames() != sorted(outer.getnames())
    assert ours.fingerprint == FolderReader(extracted, split).fingerprint


def test_a_long_name_is_shown_as_in_the_header(tmp_path: Path):
    name = f"{'x' * 150}.JPEG"
    reader = ImagenetReader(with_classes(tmp_path, {"n01440764": tar({"a.JPEG": b"1", name: b"22"})}), "train")
    assert [reader.name(i).rpartition("/")[2] for i in range(2)] == ["a.JPEG", name[:100]]
    assert [reader.read(i) for i in range(2)] == [b"1", b"22"]


def test_an_archive_replaced_with_its_size_and_time_kept_is_seen(tmp_path: Path):
    """`rsync -t` and `cp -p` replace files like this."""
    archive, seen = tmp_path / TRAIN.name, set()
    for name in ("a.JPEG", "b.JPEG"):
        with_classes(tmp_path, {"n01440764": tar({name: b"1"})})
        os.utime(archive, (1, 1))
        seen.add((archive.stat().st_size, ImagenetReader(tmp_path, "train").fingerprint))
    assert [size for size, _ in seen] == [20480, 20480]


# ------------------------------------------------------------------------------------------------ builds of the index


def test_the_index_is_built_once_and_again_for_another_kit(archives: Path, tmp_path: Path):
    ImagenetReader(archives, "val", tmp_path / "cache")
    (built,) = (tmp_path / "cache").glob("*.index")
    before = built.stat().st_ino
    ImagenetReader(archives, "val", tmp_path / "cache")
    assert built.stat().st_ino == before
    (archives / DEVKIT.name).write_bytes(devkit(VAL_CLASSES[::-1]))
    again = ImagenetReader(archives, "val", tmp_path / "cache")
    by_name = sorted((again.name(i), again.classes[label]) for i, label in enumerate(again.labels))
    assert [wordnet_id for _, wordnet_id in by_name] == VAL_CLASSES[::-1]


@pytest.mark.parametrize(("split", "pieces"), [("train", len(CLASSES)), ("val", 12)])
def test_progress_covers_the_whole_archive(archives: Path, monkeypatch: pytest.MonkeyPatch, split: str, pieces: int):
    bar = Mock()
    monkeypatch.setattr(module, "progress", lambda label, total, unit: nullcontext(partial(bar, total)))
    ImagenetReader(archives, split)
    totals, counts = zip(*(call.args for call in bar.call_args_list), strict=True)
    assert {*totals} == {sum(counts)} == {(archives / f"ILSVRC2012_img_{split}.tar").stat().st_size}
    assert sum(count > 0 for count in counts) >= pieces
    assert min(counts) >= 0


def test_an_archive_replaced_during_the_run_is_not_read(archives: Path):
    reader = ImagenetReader(archives, "train")
    (archives / TRAIN.name).write_bytes(train_archive(per_class=7))
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar/n01440764.tar/.* cannot be read: it has changed"):
        reader.read(0)
    (archives / TRAIN.name).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        reader.read(0)


# ------------------------------------------------------------------------------------------------ refusals


def test_missing_files_are_named_with_what_is_needed(archives: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar cannot be read: No such file.*devkit_t12.tar.gz"):
        ImagenetReader(tmp_path, "train")
    (archives / DEVKIT.name).unlink()
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit_t12.tar.gz cannot be read: No such file"):
        ImagenetReader(archives, "val")
    with pytest.raises(DataError, match="no split 'test'; give train or val"):
        ImagenetReader(archives, "test")


def refusal(root: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        ImagenetReader(root, split)
    return str(caught.value)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`publish(root)`: let the sizes of the archives in a folder be the published sizes."""

    def set_sizes(root: Path) -> None:
        published = [
            archive._replace(size=(root / archive.name).stat().st_size if (root / archive.name).exists() else 0)
            for archive in ARCHIVES
        ]
        monkeypatch.setattr(module, "_SPLITS", {"train": published[:1], "val": published[1:]})

    return set_sizes


TWICE = tar([("a.JPEG", b"1"), ("a.JPEG", b"2")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"n01440764.tar": TWICE}, "ILSVRC2012_img_train.tar: n01440764.tar: member 'a.JPEG' is there twice"),
        ({"n01440764.tar": tar([special("b.JPEG")])}, "n01440764.tar: member 'b.JPEG' is a symbolic link"),
        ({"n01440764.tar": TWICE[:1024]}, "n01440764.tar is cut off after member 'a.JPEG'"),
        ({"train/n01440764.tar": b""}, "member 'train/n01440764.tar' is no archive of a class"),
        ({"n01440764_10026.JPEG": b""}, "member 'n01440764_10026.JPEG' is no archive of a class"),
        ({"n01440764.tar": tar({})}, "n01440764.tar holds no images"),
        ({"n01440764.tar": tar({"deep/a.JPEG": b"1"})}, "member 'deep/a.JPEG' (1 bytes) is in a folder"),
        ({"n01440764.tar": tar({"a.JPEG": bytes(101)})}, "(101 bytes) is in a folder or too large for an image"),
        ({}, "holds no images"),
    ],
)
def test_archives_of_another_form_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes], message: str
):
    monkeypatch.setattr(module, "LARGEST_IMAGE", 100)
    (tmp_path / TRAIN.name).write_bytes(tar(content))
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("00000005", "00000013"), ("00000001", "1"), ("00000012", "00000012x")])
def test_validation_images_have_the_numbers_of_the_kit(archives: Path, old: str, new: str):
    images = {f"ILSVRC2012_val_{n:08}.JPEG".replace(old, new): jpeg(n) for n in range(1, 13)}
    (archives / VAL.name).write_bytes(tar(images))
    assert "labels follow these numbers" in refusal(archives, "val")
    (archives / DEVKIT.name).write_bytes(devkit(VAL_CLASSES[:-1]))
    assert "holds 12 images, and the kit the classes of 11" in refusal(archives, "val")


ALL_IDS = [row.wordnet_id for row in imagenet_classes()]


def test_counts_of_published_archives(tmp_path: Path, publish: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch):
    """The classes and the number of images are asked of an archive of the published size alone."""
    one = tar({"a.JPEG": b"1"})
    assert len(ImagenetReader(with_classes(tmp_path, {"n01440764": one}), "train").classes) == 1
    publish(with_classes(tmp_path, dict.fromkeys(ALL_IDS, one)))
    problem = "holds 1,000 images of 1,000 classes, not the images and classes of the challenge; get the archive again"
    assert problem in refusal(tmp_path)
    monkeypatch.setitem(module.OFFICIAL_COUNTS, "train", 1000)
    publish(with_classes(tmp_path, dict.fromkeys([*ALL_IDS[:-1], "n99999999"], one)))
    assert problem in refusal(tmp_path)
    publish(with_classes(tmp_path, dict.fromkeys(ALL_IDS, one)))
    assert len(ImagenetReader(tmp_path, "train")) == 1000


def test_a_kit_of_another_year_is_refused(archives: Path, tmp_path: Path, publish: Callable[[Path], None]):
    """Its numbers would stand for other classes. Small archives of tests have other kits."""
    assert len(ImagenetReader(archives, "val", tmp_path / "other")) == 12
    publish(archives)
    assert f"and {DEVKIT.md5} is published" in refusal(archives, "val")


def test_an_image_folder_is_asked_for_where_archives_are(archives: Path):
    with pytest.raises(DataError, match=r"holds ImageNet's archives and no folder val.*data.format=imagenet"):
        open_reader(archives, "val")
    assert len(open_reader(archives, "val", "imagenet")) == 12
