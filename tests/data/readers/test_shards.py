import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_folders import images, make_shards, script, write_tar

from seresnext.data.readers import open_reader, recognise_form
from seresnext.data.readers.shards import ENTRY, MANIFEST, Manifest, Shard, ShardReader, check_cache, list_shard
from seresnext.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_shards(tmp_path)
    return tmp_path


def tar_contents(folder: Path) -> list[tuple[bytes, int]]:
    """Images and labels of all shards, as Python's tarfile reads them."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m))}
        found += [(data, int(files[f"{name[:-4]}.cls"])) for name, data in files.items() if name.endswith(".jpg")]
    return found


# ------------------------------------------------------------------------------------------------ what is read


def test_images_and_labels_are_those_that_tarfile_finds(root: Path):
    reader = open_reader(root, "train", "shards")
    assert [(reader.read(i), int(reader.labels[i])) for i in range(len(reader))] == tar_contents(root / "train")
    assert (len(reader), reader.classes, reader.labels.dtype) == (24, ("ant", "bee", "cat"), np.int64)
    assert reader.name(7) == "train/train-00001.tar, image 7"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_listed(tmp_path: Path, form: int):
    long = "n" * 80 + "/" + "k" * (40 if form == tarfile.USTAR_FORMAT else 140)
    contents = [(f"{long}.jpg", b"one"), (f"{long}.json", b"{}"), (f"{long}.cls", b"2\n"), ("b.x.png", b"")]
    contents[3:] = [("b.png", b"two"), ("b.cls", b"0")]
    write_tar(tmp_path / "s.tar", contents, form)
    listing = list_shard(tmp_path / "s.tar", 3)
    content = (tmp_path / "s.tar").read_bytes()
    assert [content[e["offset"] : e["offset"] + e["size"]] for e in listing.entries] == [b"one", b"two"]
    assert listing.entries["label"].tolist() == [2, 0]


def test_times_with_fractions_as_webdataset_writes_them_are_read(tmp_path: Path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "a.cls"):
            member = tarfile.TarInfo(name)
            member.mtime, member.size = 1.5, 1  # The time goes into a header of its own.
            tar.addfile(member, io.BytesIO(b"1"))
    assert list_shard(tmp_path / "s.tar", 2).entries["offset"].tolist() == [1536]


def test_a_reader_travels_to_another_process_without_its_index(root: Path):
    reader = ShardReader(str(root), "train")
    text = pickle.dumps(reader)
    assert len(text) < 4000
    assert pickle.loads(text).read(5) == reader.read(5)


def test_the_index_of_imagenet_is_small_enough():
    assert 1_281_167 * ENTRY.itemsize < 30e6


def test_the_fingerprint_is_of_images_labels_and_order(tmp_path: Path):
    make_shards(tmp_path / "a")
    make_shards(tmp_path / "b")
    make_shards(tmp_path / "c", size=4001)
    a, b, c = (ShardReader(str(tmp_path / name), "train").fingerprint for name in "abc")
    assert a == b != c


def test_shards_are_recognised(root: Path):
    assert recognise_form(root, "train", "folder") == "shards"
    assert recognise_form("https://host/x", "train", "folder") == "shards"
    (root / "train" / MANIFEST).unlink()
    assert recognise_form(root, "train", "shards") == "folder"


# ------------------------------------------------------------------------------------------------ what is refused


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_an_image_is_found_when_it_is_read(root: Path):
    path = root / "train" / "train-00001.tar"
    flip(path, 600)
    reader = ShardReader(str(root), "train")
    with pytest.raises(DataError, match=r"train-00001\.tar is damaged: image 6 is not what was written"):
        reader.read(6)
    flip(path, 600)
    assert reader.read(6)


def append_link(path: Path) -> None:
    contents = path.read_bytes().rstrip(b"\0")
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("evil")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    assert path.read_bytes()[: len(contents)] == contents
    with path.open("ab") as file:
        file.write(bytes(10240))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, r"train-00002\.tar cannot be read: No such file.*get the shard again"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), r"train-00002\.tar: member '0012\.jpg' is cut off"),
        (append_link, r"train-00002\.tar: member 'evil' is a symbolic link"),
        (lambda path: flip(path.with_name("index.npy"), 200), r"index\.npy is damaged or of other shards"),
        (lambda path: path.with_name("index.npy").unlink(), r"index\.npy cannot be read: No such file"),
        (lambda path: path.with_name(MANIFEST).write_text("{"), r"index\.json is no index of shards"),
        (lambda path: path.with_name(MANIFEST).write_text('{"format": "other"}'), "is of the format 'other'"),
        (lambda path: path.with_name(MANIFEST).unlink(), r"holds shards without index\.json.*--index"),
    ],
)
def test_harm_is_named(root: Path, harm: Callable[[Path], object], message: str):
    ShardReader(str(root), "train")
    harm(root / "train" / "train-00002.tar")
    with pytest.raises(DataError, match=message):
        ShardReader(str(root), "train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"ant"', '"asp"', "was changed since it was written"),
        ("train-00000.tar", "../train-00000.tar", "a shard is a .tar file beside its index"),
        ("train-00000.tar", "/etc/passwd", "a shard is a .tar file beside its index"),
        ('"images": 6', '"images": "6"', "fingerprint|no index"),
    ],
)
def test_an_index_that_was_changed_is_refused(root: Path, old: str, new: str, message: str):
    path = root / "train" / MANIFEST
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        ShardReader(str(root), "train")


def test_an_index_whose_counts_disagree_is_refused(root: Path):
    path = root / "train" / MANIFEST
    true = Manifest.from_text(path.read_text(), "")
    wrong = [Shard(s.name, s.bytes, s.images + (i == 0) - (i == 1), s.sha256) for i, s in enumerate(true.shards)]
    path.write_text(Manifest(true.classes, tuple(wrong), true.index_sha256, {}).to_text())
    with pytest.raises(DataError, match=r"index\.npy and index\.json do not agree"):
        ShardReader(str(root), "train")


def test_a_wrong_folder_is_explained(root: Path, tmp_path: Path):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    for folder, split, message in [
        (tmp_path / "nowhere", "train", "there is no folder"),
        (root, "val", "has no split 'val'"),
        (tmp_path / "empty", "train", r"holds no shards; write some with scripts/prepare_shards\.py"),
    ]:
        with pytest.raises(DataError, match=message):
            ShardReader(str(folder), split)


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


GOOD = [("a.jpg", b"one"), ("a.cls", b"1")]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([*GOOD, special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd")], "'soft.jpg' is a symbolic link"),
        ([*GOOD, special("hard.jpg", tarfile.LNKTYPE, "a.jpg")], "'hard.jpg' is a hard link"),
        ([*GOOD, special("dev.jpg", tarfile.CHRTYPE)], "'dev.jpg' is a character device"),
        ([*GOOD, special("disk.jpg", tarfile.BLKTYPE)], "'disk.jpg' is a block device"),
        ([*GOOD, special("pipe.jpg", tarfile.FIFOTYPE)], "'pipe.jpg' is a FIFO"),
        ([*GOOD, special("holes.jpg", tarfile.GNUTYPE_SPARSE)], "'holes.jpg' is a sparse file"),
        ([*GOOD, *GOOD], "'a.jpg' is there twice"),
        ([*GOOD, ("/etc/b.jpg", b"x")], "'/etc/b.jpg' points outside"),
        ([*GOOD, ("../b.jpg", b"x")], "'../b.jpg' points outside"),
        ([*GOOD, ("b.jpg", b"x")], "'b.jpg' has no label b.cls beside it"),
        ([*GOOD, ("b.cls", b"0")], "'b.cls' has no image b.jpg"),
        ([*GOOD, ("b.jpg", b"x"), ("b.png", b"x"), ("b.cls", b"0")], "'b.png' is a second image of the key 'b'"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"3")], "'b.cls' is no label: b'3' is not a number from 0 to 2"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"-1")], "'b.cls' is no label"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"9" * 5000)], "'b.cls' is no label"),
        ([GOOD[0], ("b.jpg", b"x"), ("b.cls", b"1"), GOOD[1]], "'a.jpg' has no label a.cls beside it"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"1"), ("a.json", b"{}")], "'a.json' is apart from the others of its key"),
    ],
)
def test_a_hostile_or_odd_member_is_refused_by_name(tmp_path: Path, contents: list, message: str):
    write_tar(tmp_path / "s.tar", contents)
    with pytest.raises(DataError) as caught:
        list_shard(tmp_path / "s.tar", 3)
    assert f"s.tar: member {message}" in str(caught.value)
    write_tar(tmp_path / "s.tar", GOOD)
    assert len(list_shard(tmp_path / "s.tar", 3).entries) == 1


def test_a_shard_that_is_cut_off_anywhere_is_refused(tmp_path: Path):
    whole = tmp_path / "s.tar"
    write_tar(whole, [(f"{i}.{kind}", b"1") for i in range(3) for kind in ("jpg", "cls")])
    content = whole.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    for length in range(0, end, 256):
        whole.write_bytes(content[:length])
        with pytest.raises(DataError, match="cut off"):
            list_shard(whole, 3)


# ------------------------------------------------------------------------------------------------ shards of others


def test_shards_of_other_origin_get_an_index(tmp_path: Path):
    folder = tmp_path / "train"
    folder.mkdir()
    data = images(4, 100)
    write_tar(folder / "b.tar", [("2.jpg", data[2]), ("2.cls", b"0"), ("3.jpg", data[3]), ("3.cls", b"1")])
    write_tar(folder / "a.tar", [("0.jpg", data[0]), ("0.cls", b"1"), ("1.jpg", data[1]), ("1.cls", b"0")])
    (tmp_path / "classes").write_text("ant\nbee\n")
    script().index_existing(folder, tmp_path / "classes")
    reader = ShardReader(str(tmp_path), "train")
    assert [reader.read(i) for i in range(4)] == data
    assert reader.labels.tolist() == [1, 0, 0, 1]


def test_nothing_to_check_without_a_server(root: Path):
    check_cache(ShardReader(str(root), "train"), None)
