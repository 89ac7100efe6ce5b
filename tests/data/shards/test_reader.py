import mmap
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from damage import flip_bit
from shard_folders import SHARD_BYTES, SHARDS, Server, make_shards, open_remote

from seresnext.data.formats import open_reader
from seresnext.data.shards.format import MANIFEST, Manifest, Shard
from seresnext.data.shards.reader import ShardReader, check_room
from seresnext.errors import DataError


def tar_contents(folder: Path) -> list[tuple[bytes, int]]:
    """Return images and labels of all shards, read by Python's tarfile."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m))}
        found += [(data, int(files[f"{name[:-4]}.cls"])) for name, data in files.items() if name.endswith(".jpg")]
    return found


# ------------------------------------------------------------------------------------------------ reads


def test_images_and_labels_equal_tarfile(shard_root: Path):
    reader = open_reader(shard_root, "train", "shards")
    assert [(reader.read(i), int(reader.labels[i])) for i in range(len(reader))] == tar_contents(shard_root / "train")
    assert (len(reader), reader.classes) == (24, ("ant", "bee", "cat"))
    assert reader.name(7) == "train/train-00001.tar, image 7"


def test_a_forked_worker_shares_all_that_is_of_images(shard_root: Path):
    """Data outside of the mapped file would be memory of each process."""
    reader = ShardReader(str(shard_root), "train")
    for column in (reader.labels, reader.shard_ids):
        while isinstance(column.base, np.ndarray):
            column = column.base
        assert isinstance(column.base, mmap.mmap)
    assert not [name for name, value in vars(reader).items() if isinstance(value, np.ndarray) and value.flags.owndata]


def test_the_fingerprint_is_of_images_labels_and_order(tmp_path: Path):
    make_shards(tmp_path / "a")
    make_shards(tmp_path / "b")
    make_shards(tmp_path / "c", size=4001)
    a, b, c = (ShardReader(str(tmp_path / name), "train").fingerprint for name in "abc")
    assert a == b != c


# ------------------------------------------------------------------------------------------------ refusals


def test_a_flipped_bit_in_an_image_is_found_when_it_is_read(shard_root: Path):
    path = shard_root / "train" / "train-00001.tar"
    flip_bit(path, 600)
    reader = ShardReader(str(shard_root), "train")
    with pytest.raises(DataError, match=r"train-00001\.tar is damaged \(image 6 has another checksum"):
        reader.read(6)
    flip_bit(path, 600)
    assert reader.read(6)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def recount(path: Path) -> None:
    """Move an image from a shard to another one, with the right fingerprint."""
    true = Manifest.from_text(path.read_text(), "")
    wrong = [Shard(s.name, s.bytes, s.images + (i == 0) - (i == 1), s.sha256) for i, s in enumerate(true.shards)]
    path.write_text(Manifest(true.classes, tuple(wrong), true.index_sha256, {}).to_text())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, r"train-00002\.tar cannot be read: No such file.*get the shard again"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:3000]),
            r"train-00002\.tar has 3000 bytes, in the index 40960; get the shard again",
        ),
        (lambda path: flip_bit(path.with_name("index.npy"), 200), r"index\.npy is damaged or of other shards"),
        (lambda path: path.with_name("index.npy").unlink(), r"index\.npy cannot be read: No such file"),
        (lambda path: path.with_name(MANIFEST).write_text('{"format": "other"}'), "has the format 'other'"),
        (lambda path: path.with_name(MANIFEST).unlink(), r"index\.json cannot be read: No such file.*--index"),
        (lambda path: [each.unlink() for each in path.parent.iterdir()], "holds no shards; write some with seresnext"),
        (lambda path: edit(path.with_name(MANIFEST), '"ant"', '"asp"'), "was changed after it was written"),
        (lambda path: recount(path.with_name(MANIFEST)), r"index\.npy is damaged .*other numbers of images"),
    ],
)
def test_harm_is_named(shard_root: Path, harm: Callable[[Path], object], message: str):
    ShardReader(str(shard_root), "train")
    harm(shard_root / "train" / "train-00002.tar")
    with pytest.raises(DataError, match=message):
        ShardReader(str(shard_root), "train")


def test_a_disk_without_room_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Shards that are there need no room."""
    reader, other = (open_remote(server, tmp_path / name) for name in ("cache", "other"))
    free = SHARDS * SHARD_BYTES - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    check_room([ShardReader(str(server.folder), "train")])  # A folder needs no copies.
    with pytest.raises(
        DataError, match=r"cache/shards has room for 0\.000164 GB.* set data\.cache to a folder on a larger"
    ):
        check_room([reader])
    reader.read(0)
    check_room([reader])
    with pytest.raises(DataError, match=r"the shards to download have 0\.000287 GB"):
        check_room([reader, other])
