"""`seresnext prepare shards` as a user starts it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from advances import record_bars
from conftest import Result
from launcher import PYTHON
from PIL import Image
from shard_folders import make_shards

from seresnext.arguments import Parser
from seresnext.commands import prepare as commands
from seresnext.data.formats import open_reader
from seresnext.data.shards.format import MANIFEST, Manifest
from seresnext.errors import DataError, UsageError
from seresnext.prepare import shards
from seresnext.randomness import permutation_at

COMMAND = [PYTHON, "-m", "seresnext", "prepare", "shards"]
Prepare = Callable[..., Result]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` with 23 images of two classes: JPEGs of at most 300 x 223, one gray, one PNG, one PNG named .jpg."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(23):
        folder = root / "train" / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (30, 40) if number == 3 else (200 + number, 300)
        small = rng.integers(0, 256, (8, 8) if number == 4 else (8, 8, 3), dtype=np.uint8)
        form = "PNG" if number in (5, 6) else "JPEG"
        name = f"{number:02}.{'png' if number == 5 else 'JPEG'}"
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / name, form, quality=92)
    return root


@pytest.fixture
def prepare(run_command, tmp_path: Path) -> Prepare:
    def run(*arguments: object, workers: int = 2, code: int = 0) -> Result:
        words = [str(word) for word in arguments]
        options = ["--cache", tmp_path / "cache", "--workers", str(workers)]
        result = run_command([*COMMAND, *words, *([] if "--index" in words else options)])
        assert result.returncode == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


def write(*arguments: object) -> None:
    """Run the command in this process."""
    parser = Parser()
    commands.shards_arguments(parser)
    commands.shards(parser.parse([str(argument) for argument in arguments]))


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder."""
    assert not (folder / ".progress").exists()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m))}
    return found


def test_shards_have_unchanged_images_in_the_order_of_the_seed(photographs, prepare, tmp_path):
    out = tmp_path / "out"
    result = prepare(photographs, "--output", out, "--split", "train", "--images-per-shard", 5, "--seed", 3)
    assert "23 images in 5 shards" in result.stdout
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


def test_the_manifest_has_checksums_classes_counts_and_options(photographs, prepare, tmp_path):
    arguments = ("--split", "train", "--images-per-shard", 10, "--short-side", 100)
    prepare(photographs, "--output", tmp_path / "out", *arguments)
    folder = tmp_path / "out" / "train"
    said = json.loads((folder / MANIFEST).read_text())
    assert (said["num_images"], said["classes"]) == (23, ["class_0", "class_1"])
    assert [shard["images"] for shard in said["shards"]] == [10, 10, 3]
    for shard in said["shards"]:
        assert hashlib.sha256((folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    options = {key: said["options"][key] for key in ("short_side", "quality", "subsampling", "interpolation", "seed")}
    assert options == {
        "short_side": 100,
        "quality": 90,
        "subsampling": "4:2:0",
        "interpolation": "bilinear",
        "seed": 0,
    }


def test_the_same_images_and_options_give_the_same_bytes(photographs, prepare, tmp_path):
    arguments = ("--split", "train", "--images-per-shard", 6, "--short-side", 64)
    for number, workers in enumerate((1, 3)):
        prepare(photographs, "--output", tmp_path / str(number), *arguments, workers=workers)
    prepare(photographs, "--output", tmp_path / "2", *arguments, "--seed", 1)
    one, three, other = (contents(tmp_path / str(number) / "train") for number in range(3))
    assert one == three
    assert one.keys() == other.keys()
    assert one["train-00000.tar"] != other["train-00000.tar"]


def test_large_images_become_small_ones_and_small_jpegs_stay(photographs, prepare, tmp_path):
    prepare(photographs, "--output", tmp_path, "--split", "train", "--short-side", 64, "--quality", 80)
    found = {name[10:12]: data for name, data in members(tmp_path / "train").items() if not name.endswith(".cls")}
    assert found["03"] == (photographs / "train" / "class_1" / "03.JPEG").read_bytes()
    for number in (2, 4, 6, 9):
        with Image.open(next(photographs.glob(f"train/*/{number:02}.*"))) as source:
            pixels = np.asarray(source.convert("RGB"), float)
            size = (64, int(64 * source.height / source.width))
            expected = source.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        assert min(pixels.shape[:2]) > 64
        with Image.open(io.BytesIO(found[f"{number:02}"])) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", size, "L" if number == 4 else "RGB")
            difference = np.abs(np.asarray(image.convert("RGB"), float) - np.asarray(expected, float))
        assert difference.mean() < 4


def test_a_second_run_writes_only_damaged_shards(photographs, prepare, tmp_path):
    arguments = (photographs, "--output", tmp_path / "out", "--split", "train", "--images-per-shard", 5)
    prepare(*arguments)
    folder = tmp_path / "out" / "train"
    before = contents(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    prepare(*arguments)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == times
    content = bytearray((folder / "train-00001.tar").read_bytes())
    content[700] ^= 1
    (folder / "train-00001.tar").write_bytes(content)
    (folder / "train-00003.tar").unlink()
    prepare(*arguments)
    assert contents(folder) == before
    changed = {path.name for path in folder.glob("*.tar") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"train-00001.tar", "train-00003.tar"}


def test_the_progress_of_shards_adds_up(photographs, monkeypatch, tmp_path):
    """The progress counts all shards: existing shards, and one that is written again."""
    bars = record_bars(shards, monkeypatch)
    arguments = ["--output", tmp_path, "--split", "train", "--images-per-shard", 5, "--workers", 2]
    write(photographs, *arguments)
    (tmp_path / "train" / "train-00001.tar").unlink()
    write(photographs, *arguments)
    assert [(bar.label, bar.total) for bar in bars] == [(str(tmp_path / "train"), 23)] * 2
    for bar in bars:
        bar.assert_adds_up(1)  # The progress is read five times a second, and this run takes less.


def test_ignored_files_are_reported_each_time(photographs, monkeypatch, tmp_path, capsys):
    shutil.copytree(photographs, tmp_path / "data")
    (tmp_path / "data" / "train" / "class_0" / "photo.heic").write_bytes(b"")
    arguments = ["--output", tmp_path / "out", "--split", "train", "--images-per-shard", 20, "--workers", 1]
    for _ in range(2):
        write(tmp_path / "data", *arguments)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "(1 .heic)" in line]
        assert line.startswith(f"warning: {tmp_path}/data/train: ")


def test_the_progress_of_an_index_adds_up(monkeypatch, tmp_path):
    make_shards(tmp_path)
    bars = record_bars(shards, monkeypatch)
    shards.index_existing(tmp_path / "train", tmp_path / "classes.txt")
    (bar,) = bars
    assert bar.total == sum(path.stat().st_size for path in (tmp_path / "train").glob("*.tar"))
    bar.assert_adds_up(4)


def test_an_interrupted_run_continues(photographs, prepare, start_command, tmp_path):
    arguments = [photographs, "--output", tmp_path / "out", "--split", "train", "--images-per-shard", 1]
    options = ["--short-side", "190", "--workers", "1", "--cache", tmp_path / "cache"]
    command = start_command([*COMMAND, *arguments, *options])
    folder = tmp_path / "out" / "train"
    while len(list(folder.glob("*.tar"))) < 3:
        assert command.process.poll() is None
        time.sleep(0.002)
    os.kill(command.process.pid, signal.SIGINT)
    result = command.finish()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    if result.returncode:  # The command may have finished before the signal.
        assert result.returncode == 130
        assert "the same command continues" in result.stderr
        assert "Traceback" not in result.stderr
        assert 3 <= len(kept) < 23
        assert not (folder / MANIFEST).exists()
    prepare(*arguments, "--short-side", 190)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    prepare(photographs, "--output", tmp_path / "new", *arguments[3:], "--short-side", 190)
    assert contents(folder) == contents(tmp_path / "new" / "train")


def test_other_options_do_not_mix_with_existing_shards(photographs, prepare, tmp_path):
    arguments = (photographs, "--output", tmp_path, "--split", "train")
    prepare(*arguments)
    before = contents(tmp_path / "train")
    result = prepare(*arguments, "--short-side", 64, code=3)
    assert "has other shards" in result.stderr
    assert "short_side: None, now 64" in result.stderr
    assert contents(tmp_path / "train") == before


def interrupt(folder: Path) -> None:
    """Turn finished shards into the folder of a run that was stopped before the index was written."""
    (folder / ".progress").mkdir()
    for shard in manifest(folder).shards:
        note = {"made_by": "whom it was", **vars(shard)}
        (folder / ".progress" / f"{shard.name}.json").write_text(json.dumps(note))
    for name in (MANIFEST, "index.npy"):
        (folder / name).unlink()


def test_shards_of_an_unfinished_run_with_other_options_do_not_stay(photographs, prepare, tmp_path):
    arguments = (photographs, "--split", "train", "--output")
    prepare(*arguments, tmp_path / "out", "--images-per-shard", 6)
    interrupt(tmp_path / "out" / "train")
    prepare(*arguments, tmp_path / "out", "--images-per-shard", 12)
    prepare(*arguments, tmp_path / "new", "--images-per-shard", 12)
    assert contents(tmp_path / "out" / "train") == contents(tmp_path / "new" / "train")
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == 2


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("train-00000.tar", "empty"),
        ("train-00007.tar", "unfinished"),
        ("mine.tar", "unfinished"),
        ("mine.tar", "finished"),
    ],
)
def test_tar_files_of_other_origin_are_named_and_left_alone(photographs, prepare, tmp_path, name: str, state: str):
    folder = tmp_path / "out" / "train"
    arguments = (photographs, "--split", "train", "--output", tmp_path / "out", "--images-per-shard", 12)
    if state == "empty":
        folder.mkdir(parents=True)
    else:
        prepare(*arguments)
    if state == "unfinished":
        interrupt(folder)
    (folder / name).write_bytes(b"precious")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = prepare(*arguments, code=3)
    assert f"{folder} has files of other shards: {name}; give another --output, or remove" in result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / name).unlink()
    prepare(*arguments)


def test_a_split_that_got_another_name_keeps_its_shards(photographs, prepare, tmp_path):
    prepare(photographs, "--split", "train", "--output", tmp_path / "out")
    (photographs.parent / "renamed").mkdir()
    (photographs.parent / "renamed" / "fit").symlink_to(photographs / "train")
    (tmp_path / "out" / "train").rename(tmp_path / "out" / "fit")
    before = contents(tmp_path / "out" / "fit")
    result = prepare(photographs.parent / "renamed", "--split", "fit", "--output", tmp_path / "out", code=3)
    assert "has files of other shards: train-00000.tar" in result.stderr
    assert contents(tmp_path / "out" / "fit") == before


def test_a_bad_image_is_named(photographs, prepare, tmp_path):
    root = tmp_path / "data"
    (root / "train" / "a").mkdir(parents=True)
    (root / "train" / "a" / "bad.jpg").write_bytes(b"no image")
    result = prepare(root, "--output", tmp_path / "out", "--split", "train", code=3)
    assert "train/a/bad.jpg " in result.stderr
    assert "text" in result.stderr
    (root / "train" / "a" / "bad.jpg").write_bytes(next(photographs.glob("train/*/02.JPEG")).read_bytes()[:900])
    result = prepare(root, "--output", tmp_path / "out", "--split", "train", "--short-side", 64, code=3)
    assert "train/a/bad.jpg is no JPEG or PNG image that can be decoded" in result.stderr


def test_a_shard_has_about_the_requested_size(photographs, prepare, tmp_path):
    big = tmp_path / "data" / "train" / "a"
    big.mkdir(parents=True)
    for number in range(40):
        (big / f"{number}.jpg").write_bytes(b"\xff\xd8\xff" + os.urandom(90_000 + 1000 * (number % 20)))
    prepare(tmp_path / "data", "--output", tmp_path / "out", "--split", "train", "--shard-size", 1)
    sizes = [shard.bytes for shard in manifest(tmp_path / "out" / "train").shards]
    assert len(sizes) == 4
    assert all(900_000 < size < 1_100_000 for size in sizes)


def manifest(folder: Path) -> Manifest:
    return Manifest.from_text((folder / MANIFEST).read_text(), str(folder))


def test_an_index_of_other_shards_is_written(prepare, tmp_path):
    make_shards(tmp_path)
    before = contents(tmp_path / "train")
    for name in (MANIFEST, "index.npy"):
        (tmp_path / "train" / name).unlink()
    result = prepare("--index", tmp_path / "train", "--classes", tmp_path / "classes.txt")
    assert "24 images in 4 shards" in result.stdout
    assert contents(tmp_path / "train") == before


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_list_of_classes_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "classes.txt").write_text("K\xe4fer\r\n\r\nWanze\n", encoding, newline="")
    assert shards.read_classes(tmp_path / "classes.txt") == ("K\xe4fer", "Wanze")


@pytest.mark.parametrize(
    ("encoding", "place"),
    [("latin-1", r"classes\.txt:2 .*0xe4"), ("utf-16", r"classes\.txt:1 .*0xff"), (None, "No such")],
)
def test_a_list_of_classes_in_another_encoding_is_refused(tmp_path, encoding, place):
    if encoding:
        (tmp_path / "classes.txt").write_text("Ameise\nK\xe4fer\n", encoding)
    with pytest.raises(DataError, match=place):
        shards.read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give DATA and --output DIR"),
        (["x", "--output", "y", "--quality", "100"], "--quality 100"),
        (["x", "--output", "y", "--short-side", "0"], "--short-side 0"),
        (["--index", "x"], "--index needs --classes FILE"),
    ],
)
def test_wrong_arguments_are_explained(prepare, arguments, message):
    assert message in prepare(*arguments, code=2).stderr


def test_shards_are_not_mixed_with_the_images(photographs, monkeypatch, tmp_path):
    """Links are resolved. The other tests are the control."""
    (tmp_path / "link").symlink_to(photographs)
    before = sorted(photographs.rglob("*"))
    for output in (photographs, tmp_path / "link" / "train"):
        with pytest.raises(UsageError, match=re.escape(f"--output {output}")):
            write(photographs, "--output", output)
    assert sorted(photographs.rglob("*")) == before
