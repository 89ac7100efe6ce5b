"""`seresnext prepare shards`."""

import hashlib
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from damage import flip_bit
from encoded_images import encoded, noise, rgb, turned
from launcher import PYTHON
from PIL import Image
from shard_folders import make_shards

from seresnext.data.formats import open_reader
from seresnext.data.shards.format import MANIFEST
from seresnext.prepare import shards
from seresnext.randomness import permutation_at

Prepare = Callable[..., str]


@pytest.fixture
def write(prepare: Prepare, photographs: Path, tmp_path: Path) -> Prepare:
    """`write(output, *options, data=photographs)`: write the shards of `train` in the folder `output`."""

    def run(output: object, *options: object, data: Path = photographs, split: str = "train", code: int = 0) -> str:
        words = ["--output", tmp_path / str(output), "--split", split, "--cache", tmp_path / "cache", "--workers", 2]
        return prepare("shards", data, *words, *options, code=code)

    return run


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m))}
    return found


def test_shards_have_unchanged_images_in_the_order_of_the_seed(photographs, write, tmp_path):
    out = tmp_path / "out"
    assert "23 images in 5 shards" in write("out", "--images-per-shard", 5, "--seed", 3)
    source, reader = open_reader(photographs, "train"), open_reader(out, "train", "shards")
    order = permutation_at(3, "shards", count=23).tolist()
    assert order != list(range(23))
    assert [reader.read(i) for i in range(23)] == [source.read(i) for i in order]
    assert reader.labels.tolist() == [source.labels[i] for i in order]
    assert reader.classes == source.classes
    found = members(out / "train")  # read with tarfile, in the layout of WebDataset
    for place, image in enumerate(order):
        stem = f"{place:09}-{Path(source.name(image)).stem}"
        ending = "png" if stem.endswith(("05", "06")) else "jpg"  # by content, not by name
        assert found[f"{stem}.{ending}"] == source.read(image)
        assert found[f"{stem}.cls"] == b"%d" % source.labels[image]
    assert len(found) == 46


def test_the_manifest_has_checksums_classes_counts_and_options(write, tmp_path):
    write("out", "--images-per-shard", 10, "--short-side", 100)
    folder = tmp_path / "out" / "train"
    assert len(list(folder.iterdir())) == 3 + 2  # the shards and the index
    said = json.loads((folder / MANIFEST).read_text())
    assert (said["num_images"], said["classes"]) == (23, ["class_0", "class_1"])
    assert [shard["images"] for shard in said["shards"]] == [10, 10, 3]
    for shard in said["shards"]:
        assert hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    options = [said["options"][key] for key in ("short_side", "quality", "subsampling", "interpolation", "seed")]
    assert options == [100, 90, "4:2:0", "bilinear", 0]


def test_the_same_images_and_options_give_the_same_bytes(write, tmp_path):
    for name, options in {"1": ["--workers", 1], "3": ["--workers", 3], "seed": ["--seed", 1]}.items():
        write(name, "--images-per-shard", 6, "--short-side", 64, *options)
    one, three, other = (contents(tmp_path / name / "train") for name in ("1", "3", "seed"))
    assert one == three
    assert one.keys() == other.keys()
    assert one["train-00000.tar"] != other["train-00000.tar"]


def test_large_images_become_small_ones_and_small_jpegs_stay(photographs, write, tmp_path):
    write("out", "--short-side", 64, "--quality", 80)
    found = {name[10:12]: data for name, data in members(tmp_path / "out/train").items() if not name.endswith(".cls")}
    assert found["03"] == (photographs / "train" / "class_1" / "03.JPEG").read_bytes()
    for number in (2, 4, 6, 9):
        with Image.open(next(photographs.glob(f"train/*/{number:02}.*"))) as source:
            size = (64, int(64 * source.height / source.width))
            small = source.convert("RGB").resize(size, Image.Resampling.BILINEAR).convert("L" if number == 4 else "RGB")
        assert found[f"{number:02}"] == encoded(small, quality=80, subsampling="4:2:0")


def test_a_second_run_writes_only_damaged_shards(write, tmp_path):
    folder = tmp_path / "out" / "train"
    write("out", "--images-per-shard", 5)
    before, times = contents(folder), {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    write("out", "--images-per-shard", 5)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == times
    flip_bit(folder / "train-00001.tar", 700)
    (folder / "train-00003.tar").unlink()
    write("out", "--images-per-shard", 5)
    assert contents(folder) == before
    changed = {path.name for path in folder.glob("*.tar") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"train-00001.tar", "train-00003.tar"}


def test_ignored_files_are_reported_each_time(photographs, write, tmp_path):
    data = shutil.copytree(photographs, tmp_path / "data")
    (data / "train" / "class_0" / "notes.md").write_bytes(b"# notes")
    for _ in range(2):
        (line,) = [line for line in write("out", data=data).splitlines() if "1 .md (a text)" in line]
        assert line.startswith(f"warning: {data}/train: ")


@pytest.mark.full
def test_an_interrupted_run_continues(photographs, write, start_command, tmp_path):
    options = ["--images-per-shard", "1", "--short-side", "190", "--workers", "1"]
    words = [photographs, "--output", tmp_path / "out", "--split", "train", "--cache", tmp_path / "cache"]
    command = start_command([PYTHON, "-m", "seresnext", "prepare", "shards", *words, *options])
    folder, unfinished = tmp_path / "out" / "train", tmp_path / "out" / ".train.unfinished"
    while len(list(unfinished.glob("*.tar"))) < 3:
        assert command.process.poll() is None
        time.sleep(0.002)
    os.kill(command.process.pid, signal.SIGINT)
    result = command.finish()
    if result.returncode:  # The command may have finished before the signal.
        assert result.returncode == 130
        assert "the same command continues" in result.stderr
        assert "Traceback" not in result.stderr
        assert not folder.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (unfinished if result.returncode else folder).glob("*.tar")}
    assert len(kept) >= 3
    write("out", *options)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    write("new", *options)
    assert contents(folder) == contents(tmp_path / "new" / "train")


def test_other_options_do_not_mix_with_existing_shards(write, tmp_path):
    write("out")
    before = contents(tmp_path / "out" / "train")
    message = write("out", "--short-side", 64, code=3)
    assert "has other shards" in message
    assert "short_side: None, now 64" in message
    assert contents(tmp_path / "out" / "train") == before


@pytest.mark.parametrize("options", [(), ("--seed", 1), ("--images-per-shard", 12)], ids=str)
def test_shards_of_an_unfinished_run_with_other_options_do_not_stay(write, tmp_path, monkeypatch, options):
    """The control is the same run again, which keeps finished shards."""
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_index", Mock(side_effect=KeyboardInterrupt))
        assert "the same command continues" in write("out", "--images-per-shard", 6, code=130)
    unfinished = tmp_path / "out" / ".train.unfinished"
    before = {path.read_bytes(): path.stat().st_mtime_ns for path in unfinished.glob("*.tar")}
    for output in ("out", "new"):
        write(output, "--images-per-shard", 6, *options)
    assert contents(tmp_path / "out" / "train") == contents(tmp_path / "new" / "train")
    after = {path.read_bytes(): path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").glob("*.tar")}
    assert (len(after), after == before) == (2 if 12 in options else 4, not options)
    assert not unfinished.exists()


def test_files_of_other_origin_are_named_and_left_alone(write, tmp_path):
    file = tmp_path / "out" / "train" / "train-00000.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"precious")
    assert f"{file.parent} has other files: {file.name}; give another --output, or" in write("out", code=3)
    assert [(path, path.read_bytes()) for path in file.parent.iterdir()] == [(file, b"precious")]
    file.unlink()
    write("out")  # An empty folder is no obstacle.


def test_a_missing_split_is_reported_before_the_work(photographs, prepare, tmp_path):
    assert "no split 'val'" in prepare("shards", photographs, "--output", tmp_path / "out", code=3)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_explained(write, prepare, tmp_path, monkeypatch):
    """Before the work for a path that cannot become the folder, and without a traceback for a full disk."""
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "train").symlink_to(tmp_path)
    assert "link/train is a file or a link; give another --output" in write("link", code=3)
    (tmp_path / "file").touch()
    assert "file/train cannot be written: Not a directory; choose another folder" in write("file", code=1)
    monkeypatch.setattr(shards.os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    assert "full/train cannot be written: No space left on device; choose another folder" in write("full", code=1)
    make_shards(tmp_path)
    (tmp_path / "train" / ".index.npy.part").mkdir()
    words = ["--index", tmp_path / "train", "--classes", tmp_path / "classes.txt"]
    assert "train/index.npy cannot be written: Is a directory; choose another" in prepare("shards", *words, code=2)


def test_two_commands_do_not_write_one_folder(write, tmp_path):
    unfinished = tmp_path / "out" / ".train.unfinished"
    unfinished.mkdir(parents=True)
    with shards._lock(unfinished):
        assert f"another `seresnext prepare shards` writes to {unfinished}; wait" in write("out", code=2)
    write("out")


def test_a_finished_folder_may_have_other_files_and_another_name(photographs, write, tmp_path):
    write("out")
    (tmp_path / "renamed").mkdir()
    (tmp_path / "renamed" / "fit").symlink_to(photographs / "train")
    folder = (tmp_path / "out" / "train").rename(tmp_path / "out" / "fit")
    (folder / "mine.tar").write_bytes(b"precious")
    before = contents(folder)
    flip_bit(folder / "train-00000.tar", 700)
    write("out", data=tmp_path / "renamed", split="fit")
    assert contents(folder) == before


def test_a_bad_image_is_named(photographs, write, tmp_path):
    bad = tmp_path / "data" / "train" / "a" / "bad.jpg"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no image")
    message = write("out", data=tmp_path / "data", code=3)
    assert "train/a/bad.jpg " in message
    assert "text" in message
    bad.write_bytes(next(photographs.glob("train/*/02.JPEG")).read_bytes()[:900])
    message = write("out", "--short-side", 64, data=tmp_path / "data", code=3)
    assert "train/a/bad.jpg is no JPEG image that can be decoded" in message


def test_turned_transparent_and_other_images(write, tmp_path):
    """The pixels stay as stored, and EXIF keeps the orientation."""
    folder = tmp_path / "data" / "train" / "a"
    folder.mkdir(parents=True)
    smooth = noise(3, 2).resize((96, 64), Image.Resampling.BICUBIC)
    clear = smooth.convert("RGBA")
    clear.putalpha(0)
    sources = {"0turned": encoded(smooth, exif=turned(6)), "1webp": encoded(smooth, "WEBP", exif=turned(6)),
               "2clear": encoded(clear, "PNG"), "3plain": encoded(smooth), "4gif": encoded(smooth, "GIF")}  # fmt: skip
    for name, data in sources.items():
        (folder / f"{name}.jpg").write_bytes(data)
    write("same", data=folder.parents[1])
    same = members(tmp_path / "same" / "train")
    assert {name[10:]: data for name, data in same.items() if not name.endswith("cls")} == {
        f"{name}.{ending}": data
        for (name, data), ending in zip(sources.items(), ("jpg", "webp", "png", "jpg", "gif"), strict=True)
    }

    write("small", "--short-side", 32, "--background", "10,200,30", data=folder.parents[1])
    small = {name[10:-4]: data for name, data in members(tmp_path / "small" / "train").items() if "cls" not in name}
    for name, exif in (("0turned", turned(6)), ("1webp", turned(6)), ("3plain", b""), ("4gif", b"")):
        image = rgb(sources[name]).resize((48, 32), Image.Resampling.BILINEAR)
        assert small[name] == encoded(image, quality=90, subsampling="4:2:0", exif=exif)
    background = Image.new("RGB", (48, 32), (10, 200, 30))
    assert small["2clear"] == encoded(background, quality=90, subsampling="4:2:0")


def test_an_index_of_other_shards_is_written(prepare, tmp_path):
    make_shards(tmp_path)
    before = contents(tmp_path / "train")
    for name in (MANIFEST, "index.npy"):
        (tmp_path / "train" / name).unlink()
    words = ["--index", tmp_path / "train", "--classes", tmp_path / "classes.txt"]
    assert "24 images in 4 shards" in prepare("shards", *words)
    assert contents(tmp_path / "train") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give DATA and --output DIR"),
        (["x", "--output", "y", "--quality", "100"], "--quality: '100' is not a whole number from 1 to 95"),
        (["x", "--output", "y", "--short-side", "0"], "--short-side: '0' is not a whole number"),
        (["--index", "x"], "--index needs --classes FILE"),
        (["x", "--output", "y", "--background", "1,2,300"], "0 to 255"),
        (["x", "--output", "y", "--background", "1,2,3"], "add --quality"),
    ],
)
def test_wrong_arguments_are_explained(prepare, arguments, message):
    assert message in prepare("shards", *arguments, code=2)


def test_shards_are_not_mixed_with_the_images(photographs, write, tmp_path):
    """Links are resolved. The other tests are the control."""
    (tmp_path / "link").symlink_to(photographs)
    before = sorted(photographs.rglob("*"))
    for output in (photographs, tmp_path / "link" / "train"):
        assert f"--output {output}" in write(output, code=2)
    assert sorted(photographs.rglob("*")) == before


@pytest.mark.parametrize("name", [b"b\xff", b"b\xc3\xbc"])
def test_a_class_name_that_is_no_utf_8_is_refused(photographs: Path, prepare, tmp_path: Path, name: bytes) -> None:
    """The control is a name in UTF-8 that is no ASCII."""
    shutil.copytree(photographs, tmp_path / "data")
    (tmp_path / "data" / "train" / "class_1").rename(tmp_path / "data" / "train" / os.fsdecode(name))
    code = 3 if name == b"b\xff" else 0
    printed = prepare("shards", tmp_path / "data", "--split", "train", "--output", tmp_path / "out", code=code)
    assert ("is not UTF-8; rename the folder" in printed) == bool(code)
