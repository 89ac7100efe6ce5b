"""`seresnext prepare imagenet` on small archives, in place of the published archives."""

import hashlib
from pathlib import Path

import pytest
from damage import flip_bit
from imagenet_archives import CLASSES, write_archives

from seresnext.data.readers import imagenet


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let sizes, sums and counts of small archives be the published figures. Return the folder."""
    archives = write_archives(tmp_path / "archives")
    facts = [
        imagenet.Archive(known.name, len(content), hashlib.md5(content).hexdigest())
        for known in imagenet.ARCHIVES
        for content in [(archives / known.name).read_bytes()]
    ]
    monkeypatch.setattr(imagenet, "ARCHIVES", tuple(facts))
    monkeypatch.setattr(imagenet, "DEVKIT", facts[-1])
    rows = tuple(row for row in imagenet.imagenet_classes() if row.wordnet_id in CLASSES)
    monkeypatch.setattr(imagenet, "imagenet_classes", lambda: rows)
    monkeypatch.setattr(imagenet, "OFFICIAL_COUNTS", {"train": 20, "val": 12})
    monkeypatch.setattr(imagenet, "_SPLITS", {"train": facts[:1], "val": facts[1:]})
    return archives


def test_good_downloads_are_verified_and_indexed(published, prepare, monkeypatch, tmp_path):
    printed = prepare("imagenet", published, "--cache", tmp_path / "cache")
    assert printed.count("MD5 as published") == 3
    assert "train: 20 images of 4 classes" in printed
    assert "val: 12 images of 4 classes" in printed
    assert f"--data {published} --set data.format=imagenet --set data.cache={tmp_path / 'cache'}" in printed
    assert "warning" not in printed
    assert "MD5" not in prepare("imagenet", published, "--cache", tmp_path / "cache", "--skip-md5")
    assert len(list((tmp_path / "cache").glob("*.index"))) == 2
    # Training uses the index and does not build a second one.
    monkeypatch.setattr(imagenet, "_list_archive", None)
    assert len(imagenet.ImagenetReader(published, "train", tmp_path / "cache")) == 20


def test_a_flipped_bit_changes_the_sum(published, prepare, tmp_path):
    flip_bit(published / imagenet.TRAIN.name, 3000)
    message = prepare("imagenet", published, "--cache", tmp_path / "cache", code=3)
    assert "ILSVRC2012_img_train.tar is damaged: its MD5 is " in message
    assert not (tmp_path / "cache").exists()


def test_all_wrong_sizes_are_in_one_message(published, prepare):
    half = (published / imagenet.TRAIN.name).read_bytes()
    (published / imagenet.TRAIN.name).write_bytes(half[: len(half) // 2])
    (published / imagenet.VAL.name).unlink()
    with (published / imagenet.DEVKIT.name).open("ab") as file:
        file.write(b"more")
    lines = prepare("imagenet", published, code=3).rstrip().split("\n  ")[1:]
    assert len(lines) == 3
    assert f"img_train.tar has {len(half) // 2:,} bytes, and {len(half):,} are published" in lines[0]
    assert "ILSVRC2012_img_val.tar has 0 bytes, and " in lines[1]
    assert lines[2].endswith("are published")
