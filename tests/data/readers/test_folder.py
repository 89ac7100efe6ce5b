import itertools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision

from seresnext.data.readers import folder as module
from seresnext.data.readers.folder import FolderReader
from seresnext.errors import DataError


def make(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode("utf-8", "surrogateescape"))
    return root


def test_samples_and_labels_equal_torchvision(tmp_path: Path):
    make(tmp_path, *(f"train/{c}/{n}.JPEG" for c in ("n2", "n10", "N3", "ä") for n in (10, 9, 2, "\udcff")))
    ours, theirs = FolderReader(tmp_path, "train"), torchvision.datasets.ImageFolder(tmp_path / "train")
    assert list(ours.classes) == theirs.classes
    assert [(str(tmp_path / ours.name(i)), label) for i, label in enumerate(ours.labels)] == theirs.samples
    assert [os.fsdecode(ours.read(i)) for i in range(len(ours))] == [ours.name(i) for i in range(len(ours))]


def test_endings_in_any_case_count_and_hidden_entries_do_not(tmp_path: Path):
    good = [f"val/a/{name}" for name in ("1.JPEG", "2.jpg", "3.jpeg", "4.PNG", "5.Jpg")]
    make(tmp_path, *good, "val/a/._6.jpg", "val/a/notes.txt", "val/a/.cache/7.jpg", "val/.ipynb_checkpoints/8.jpg")
    make(tmp_path, "val/classes.csv", ".git/x.jpg")
    reader = FolderReader(tmp_path, "val")
    assert reader.classes == ("a",)
    assert [reader.name(i) for i in range(len(reader))] == good


def test_files_that_are_skipped_are_reported_at_each_start(tmp_path: Path):
    def skipped(split: str) -> list[str]:
        # Warnings about times depend on the clock.
        return [notice for notice in FolderReader(tmp_path, split).notices if "skipped files" in notice]

    made = ["a/1.jpg", "a/2.mov", "b/1.png", "b/3.MOV", "b/4.mov", "b/5.doc", "b/README", "classes.csv", "b/.6.mov"]
    make(tmp_path, *(f"train/{name}" for name in made))
    for _ in range(3):
        (notice,) = skipped("train")
        expected = "3 .mov (a text), 1 without ending (a text), 1 .csv (a text), 1 .doc (a text)"
        assert notice == f"{tmp_path}/train: skipped files: {expected}"
    make(tmp_path, "train/more.csv")  # The times of the class folders stay unchanged.
    assert " 3 .mov (a text), 2 .csv (a text), " in skipped("train")[0]
    make(tmp_path, "odd/a/1.jpg", *(f"odd/a/{n}.x{n}" for n in range(9)), "odd/a/odd.\x1b[2J\n", "odd/a/odd.\udcff")
    (notice,) = skipped("odd")
    assert notice.endswith(", ... and 6 more")
    assert notice.isprintable()


def test_content_decides_about_files_without_the_ending_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file with the ending of an image is not opened: ImageNet has a million."""
    make(tmp_path, "train/a/1.jpg", "train/a/video.mov", "train/b/2.TIFF")
    for name in ("a/photo", "b/photo.tmp"):
        (tmp_path / "train" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    opened: list[str] = []
    real = module.read_at
    monkeypatch.setattr(module, "read_at", lambda path, *rest: (opened.append(Path(path).name), real(path, *rest))[1])
    reader = FolderReader(tmp_path, "train")
    assert [reader.name(i) for i in range(len(reader))] == [
        "train/a/1.jpg", "train/a/photo", "train/b/2.TIFF", "train/b/photo.tmp",
    ]  # fmt: skip
    assert sorted(opened) == ["photo", "photo.tmp", "video.mov"]


def test_links_are_followed(tmp_path: Path):
    make(tmp_path / "elsewhere", "cats/1.jpg", "2.jpg")
    (tmp_path / "root" / "train" / "dog").mkdir(parents=True)
    (tmp_path / "root" / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "root" / "train" / "dog" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    reader = FolderReader(tmp_path / "root", "train")
    assert [reader.read(i) for i in range(2)] == [b"cats/1.jpg", b"2.jpg"]


def test_a_loop_of_links_is_named(tmp_path: Path):
    """For a class folder before training; for an image at the read, with the error of the system."""
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    (tmp_path / "train" / "a" / "2.jpg").symlink_to("2.jpg")
    reader = FolderReader(tmp_path, "train")
    assert reader.read(0) == b"train/a/1.jpg"
    with pytest.raises(DataError, match=r"train/a/2.jpg cannot be read: Too many levels of symbolic links"):
        reader.read(1)
    (tmp_path / "train" / "c").symlink_to("d")
    (tmp_path / "train" / "d").symlink_to("c")
    with pytest.raises(DataError, match=r"train cannot be listed: Too many levels of symbolic links"):
        FolderReader(tmp_path, "train")


def test_the_fingerprint_depends_on_the_images_and_classes(tmp_path: Path):
    def fingerprint(name: str, *files: str) -> str:
        return FolderReader(make(tmp_path / name, *(f"train/{file}" for file in files)), "train").fingerprint

    cases = {
        "one": ("a/1.jpg", "b/2.jpg"),
        "class": ("a/1.jpg", "c/2.jpg"),
        "file": ("a/1.jpg", "b/3.jpg"),
        "more": ("a/1.jpg", "b/2.jpg", "b/3.jpg"),
        "moved": ("a/1.jpg", "a/2.jpg", "b/3.jpg"),  # The joined names are those of the case before.
        "ends": ("a/a.jpg", "a/b.jpgc.jpg"),
        "other ends": ("a/a.jpgb.jpg", "a/c.jpg"),
    }
    assert len({fingerprint(name, *files) for name, files in cases.items()}) == len(cases)
    assert fingerprint("two", *reversed(cases["one"])) == fingerprint("one")


def test_the_fingerprint_is_of_names_alone(tmp_path: Path):
    make(tmp_path / "here", *(f"{split}/{file}" for split in ("train", "val") for file in ("a/1.jpg", "b/2.jpg")))
    before = FolderReader(tmp_path / "here", "train").fingerprint
    assert FolderReader(tmp_path / "here", "val").fingerprint == before
    (tmp_path / "here").rename(tmp_path / "there")
    os.utime(tmp_path / "there" / "train" / "a" / "1.jpg", (1, 1))
    make(tmp_path / "there", "train/a/notes.txt")
    assert FolderReader(tmp_path / "there", "train").fingerprint == before


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ([], "nowhere", r"no folder .*nowhere; give the folder of train/ and val/"),
        (["train.tar"], "train.tar", "there is no folder"),
        (["training/1", "test/1", ".hidden/1"], ".", r"no split 'train' \(found test, training\)"),
        (["loose.jpg"], ".", "found no folders"),
        (["train/x_1.JPEG", "train/x_2.JPEG"], ".", "2 images are outside of class folders, such as x_1.*train/CLASS"),
        (["train/readme.txt"], ".", "no class folders; the layout is train/CLASS/IMAGE"),
        ([f"train/c{number}/1.txt" for number in range(30)], ".", r"and 20 more$"),
        (["train/b.jpg/1.jpg/2.txt"], ".", r"b\.jpg holds the folder 1\.jpg; move the images of this folder"),
    ],
)
def test_another_layout_is_explained(tmp_path: Path, files: list[str], root: str, message: str):
    make(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        FolderReader(tmp_path / root, "train", tmp_path / ".cache")


def test_all_problems_of_a_split_come_at_once(tmp_path: Path):
    make(tmp_path, "train/good/1.jpg", "train/nested/more/1.jpg", "train/texts/1.txt", "train/loose.png")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        FolderReader(tmp_path, "train")
    lines = str(caught.value).split("\n  ")[1:]
    assert len(lines) == 4
    assert "loose.png" in lines[0]
    assert lines[1].startswith("empty has no images")
    assert lines[2].startswith("nested holds the folder more")
    assert lines[3].startswith("texts has no images (found 1 .txt (a text)); fill or remove")


def test_a_file_that_went_away_is_named(tmp_path: Path):
    reader = FolderReader(make(tmp_path, "train/a/1.jpg", "train/a/2.jpg"), "train")
    (tmp_path / "train" / "a" / "2.jpg").unlink()
    assert reader.read(0) == b"train/a/1.jpg"
    with pytest.raises(DataError, match=r"train/a/2.jpg cannot be read: No such file"):
        reader.read(1)


# ------------------------------------------------------------------------------------------------ the index


def names(root: Path) -> list[str]:
    reader = FolderReader(root, "train")
    return [reader.name(index).removeprefix("train/") for index in range(len(reader))]


def set_times(folder: Path, nanoseconds: int) -> None:
    os.utime(folder, ns=(nanoseconds, nanoseconds))


def tell_apart(split: Path, same: int | None = None) -> None:
    """Give class folders different times of change, and different or the same times of modification.

    The test makes all files within one tick of the clock.
    """
    for number, folder in enumerate(split.iterdir()):
        set_times(folder, number if same is None else same)
        time.sleep(0.01)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of a folder for each listing of the folder."""
    listed: list[str] = []
    scan = os.scandir

    def note(folder: Path):
        listed.append(Path(str(folder)).name)  # A number is the folder of a write.
        return scan(folder)

    monkeypatch.setattr(os, "scandir", note)
    return listed


def test_an_unchanged_folder_is_not_listed_again(tmp_path: Path, listings: list[str]):
    """A start lists the splits and the classes and reads the times of class folders. No class folder is listed."""
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "train/b/3.jpg")
    tell_apart(tmp_path / "train")
    first = FolderReader(tmp_path, "train")
    assert set(listings) >= {tmp_path.name, "train", "a", "b"}
    listings.clear()
    again = FolderReader(tmp_path, "train")
    assert set(listings) == {tmp_path.name, "train"}
    assert (again.fingerprint, len(again), again.notices) == (first.fingerprint, 3, ())
    make(tmp_path, "train/loose.jpg")
    with pytest.raises(DataError, match=r"1 images are outside of class folders, such as loose.jpg"):
        FolderReader(tmp_path, "train")


# ------------------------------------------------------------------------------------------------ the signature


def keep_times(folder: Path, change: Callable[[], object]) -> None:
    """Change a folder and restore the modification time, as `touch -r` and `rsync -t` do."""
    status = folder.stat()
    change()
    set_times(folder, status.st_mtime_ns)


def replace_by_copy(folder: Path, *more: str) -> None:
    """Replace a folder by a copy with the same times, as `cp -p` does."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    for name in more:
        (copy / name).write_bytes(b"")
    shutil.copystat(folder, copy)
    shutil.rmtree(folder)
    copy.rename(folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file comes": lambda a: keep_times(a, lambda: (a / "2.jpg").write_bytes(b"")),
    "a file goes": lambda a: keep_times(a, (a / "0.jpg").unlink),
    "a file is renamed": lambda a: keep_times(a, lambda: (a / "0.jpg").rename(a / "3.jpg")),
    "a class is renamed": lambda a: a.rename(a.with_name("c")),
    "a copy takes its place": lambda a: replace_by_copy(a, "2.jpg"),
    "an archive with fixed times": lambda a: [
        make(a.parents[1], "train/a/2.jpg", "train/b/2.jpg"),
        *(set_times(a.parent / name, 0) for name in "ab"),
    ],
}


def listed(root: Path) -> list[str]:
    """Return the names of the images, found without the index."""
    folder = root / "train"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


@pytest.mark.parametrize("object_store", [False, True])
@pytest.mark.parametrize("before", ["fixed", "own"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_keeps_the_times_of_folders_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, before: str, object_store: bool
):
    """The change time of the kernel shows the change. An object store has 1970 for all folders and is listed."""
    if object_store:
        monkeypatch.setattr(module, "times_of", lambda status: (0, 0))
    make(tmp_path, *(f"train/{name}/{n}.jpg" for name in "ab" for n in (0, 1)))
    for number, name in enumerate("ab"):
        set_times(tmp_path / "train" / name, 0 if before == "fixed" else 10**18 + number)
    assert names(tmp_path) == listed(tmp_path)
    CHANGES[change](tmp_path / "train" / "a")
    assert names(tmp_path) == listed(tmp_path)
    assert names(tmp_path) == listed(tmp_path)


def test_folders_with_one_modification_time_are_a_notice_at_each_start(tmp_path: Path):
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    tell_apart(tmp_path / "train", same=0)
    for _ in range(2):
        (notice,) = FolderReader(tmp_path, "train").notices
        assert notice == f"{tmp_path}/train: the times of the data show no changes, so each start lists the data"


def test_folders_whose_time_is_always_now_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count(10**18)
    monkeypatch.setattr(module, "times_of", lambda status: (next(clock), next(clock)))
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    for _ in range(2):
        assert names(tmp_path) == ["a/1.jpg", "b/2.jpg"]
    make(tmp_path, "train/a/3.jpg")
    assert names(tmp_path) == ["a/1.jpg", "a/3.jpg", "b/2.jpg"]


def test_the_names_of_classes_show_a_change_that_no_time_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "times_of", lambda status: (status.st_ino, status.st_ino))
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    assert names(tmp_path) == ["a/1.jpg", "b/1.jpg"]
    (tmp_path / "train" / "b").rename(tmp_path / "train" / "c")
    assert names(tmp_path) == ["a/1.jpg", "c/1.jpg"]


@pytest.mark.parametrize("gone", ["a/1.jpg", "a"])
def test_a_missing_file_is_not_listed_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str):
    """No time shows the removal. The same run keeps the index."""
    make(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg")
    monkeypatch.setattr(module, "times_of", lambda status: (status.st_ino, status.st_ino))
    reader = FolderReader(tmp_path, "train")
    (tmp_path / "train" / "a" / "1.jpg").unlink()
    if gone == "a":
        shutil.rmtree(tmp_path / "train" / "a")
        (tmp_path / "train" / "a").write_bytes(b"")
    else:
        # The control: without a read, no start notices the removal.
        assert names(tmp_path) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    with pytest.raises(DataError, match=r"train/a/1\.jpg .* start again"):
        reader.read(0)
    assert reader.read(2) == b"train/b/1.jpg"
    assert names(tmp_path) == (["b/1.jpg"] if gone == "a" else ["a/2.jpg", "b/1.jpg"])


def test_a_link_that_leads_nowhere_does_not_cost_a_listing_at_each_start(tmp_path: Path, listings: list[str]):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    (tmp_path / "train" / "a" / "2.jpg").symlink_to("gone.jpg")
    tell_apart(tmp_path / "train")
    reader = FolderReader(tmp_path, "train")
    with pytest.raises(DataError, match=r"2\.jpg .*No such file"):
        reader.read(1)
    listings.clear()
    FolderReader(tmp_path, "train")
    assert "a" not in listings
