"""Images, archives and indices that were made to do harm: refused in little time, by name.

Each has a control that shows the harm: the same file in the hands of Pillow, zlib or numpy, or the same work unbounded.
"""

import gzip
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encoded
from imagenet_archives import TRUTH, extension, tar, write_archives
from PIL import Image

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.jpeg import MOST_SCANS, plain_size
from seresnext.data.decode.pillow import Decoding, decode
from seresnext.data.decode.regions import Crop, Encoded, RegionDecoder
from seresnext.data.readers.folder import FolderReader
from seresnext.data.readers.imagenet import ARCHIVES, DEVKIT, VAL, ImagenetReader
from seresnext.data.readers.imagenet_classes import read_validation_classes
from seresnext.data.readers.tarfiles import members
from seresnext.data.shards import format
from seresnext.data.shards.reader import ShardReader
from seresnext.errors import DataError


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Assert that a block takes so much processor time at most."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


# ------------------------------------------------------------------------------------------------ images


def progressive(side: int, scans: int) -> bytes:
    """Return a gray JPEG of so many scans: one scan, repeated."""
    data = encoded(Image.new("L", (side, side), 77), progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (scans - data[:start].count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_many_scans() -> None:
    few, many = progressive(640, 50), progressive(640, 3000)
    assert many.count(b"\xff\xda") == 3000 > MOST_SCANS
    assert plain_size(many) is None
    assert decode(few, "few.jpg", Decoding(10**6)).size == (640, 640)
    with within(0.5), pytest.raises(DataError, match=r"many\.jpg has more than 100 scans"):
        decode(many, "many.jpg", Decoding(10**6))
    decoder = RegionDecoder(Decoding(10**6))
    with within(0.5):  # The other decoder leaves the image to Pillow.
        (found,) = decoder([Encoded(many, lambda: "many.jpg")], lambda *_: Crop(0, 0, 64, 64, False))
    assert isinstance(found, DataError)
    spent = [time.process_time()]
    for data in (few, many):
        Image.open(io.BytesIO(data)).load()
        spent.append(time.process_time())
    assert spent[2] - spent[1] > 5 * (spent[1] - spent[0])


def test_an_image_a_thousand_times_as_long_as_wide() -> None:
    """The resize of 40,000 x 1 pixels would turn the shorter side of 1 into 256."""
    data, less = (encoded(Image.new("1", (width, 1)), "PNG") for width in (40_000, 100))
    transform = ResizeCenterCrop(224, 0.875, "bilinear")
    assert decode(data, "long.png", Decoding(50_000_000)).size == (40_000, 1)
    with within(0.5), pytest.raises(DataError, match=r"long\.png .* resized to 10240000 x 256, more than data"):
        transform.decode_and_crop(data, "long.png", Decoding(50_000_000))
    assert transform.decode_and_crop(less, "less.png", Decoding(50_000_000)).shape == (224, 224, 3)


def test_files_that_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "val" / "cat"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "a_pipe.jpg")
    (folder / "b_device.jpg").symlink_to("/dev/zero")
    (folder / "c_hole.jpg").touch()
    os.truncate(folder / "c_hole.jpg", 1 << 40)
    (folder / "d.jpg").write_bytes(b"d")
    reader = FolderReader(tmp_path, "val", tmp_path / "cache")
    for number, name in enumerate(("a_pipe", "b_device", "c_hole")):
        with within(1), pytest.raises(DataError, match=f"{name}.jpg"):
            reader.read(number)
    assert reader.read(3) == b"d"


OTHER_ENTRIES: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "no permission": lambda path: path.symlink_to("/proc/self/mem"),  # Reading fails, also for root.
}


@pytest.mark.parametrize("entry", OTHER_ENTRIES)
@pytest.mark.parametrize("name", [VAL.name, DEVKIT.name, "val/a.tar", "val/index.json", "val/index.npy"])
def test_data_files_that_are_none(tmp_path: Path, name: str, entry: str) -> None:
    """The refusal names the file and comes at once. A plain open of a pipe waits without end."""
    if "/" in name:
        open_split = partial(ShardReader, str(shards(tmp_path)), "val")
    else:
        open_split = partial(ImagenetReader, write_archives(tmp_path), "val", tmp_path / "cache")
        for archive in ARCHIVES:
            os.utime(tmp_path / archive.name, (10**9, 10**9))  # The reader waits while files are young.
    open_split()
    (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    OTHER_ENTRIES[entry](tmp_path / name)
    with within(1), pytest.raises(DataError, match=Path(name).name):
        open_split()


# ------------------------------------------------------------------------------------------------ archives


def listed(content: bytes) -> list[str]:
    found = members(lambda offset, count: content[offset : offset + count], 0, len(content), "x.tar")
    return [member.name for member in found]


def test_extensions_without_end() -> None:
    """Header extensions add up for the next member. Parsing all of them again each time would take quadratic time."""
    one = extension(b"".join(b"13 k%07d=\n" % number for number in range(80)))
    end = tar({"a.jpg": b"a"})
    assert listed(one * 8 + end) == ["a.jpg"]
    with within(1), pytest.raises(DataError, match="more than 8 header extensions"):
        listed(one * 20_000 + end)


def test_an_extension_of_many_records() -> None:
    """A megabyte of the shortest records there are. Cut off one by one, each would copy the rest."""
    body = b"4 =\n" * ((1 << 20) // 4)
    with within(2):
        assert listed(extension(body) + tar({"a.jpg": b"a"})) == ["a.jpg"]
    start = time.process_time()
    for _ in range(5_000):
        body = body[4:]
    assert (time.process_time() - start) * len(body) / 4 / 5_000 > 2


@pytest.mark.parametrize("digits", [21, 5000])
def test_a_size_of_many_digits(digits: int) -> None:
    body = b" size=" + b"9" * digits + b"\n"
    body = str(len(body) + len(str(digits))).encode() + body
    with pytest.raises(DataError, match=r"x\.tar.*'9{21}") as caught:
        listed(extension(body) + tar({"a.jpg": b"a"}))
    assert len(str(caught.value)) < 300


def devkit(folder: Path, truth: bytes) -> Path:
    path = folder / DEVKIT.name
    path.write_bytes(gzip.compress(tar({f"kit/data/{TRUTH}": truth}), 9))
    return path


def test_a_kit_that_unpacks_to_much(tmp_path: Path) -> None:
    assert read_validation_classes(devkit(tmp_path, b"490\n1\n"))[1] == "n02119789"
    with within(3), pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        read_validation_classes(devkit(tmp_path, bytes(100 << 20)))
    with within(1), pytest.raises(DataError, match=rf"holds 0 files {TRUTH} of at most 1 MiB"):
        read_validation_classes(devkit(tmp_path, b"10\n" * (20 << 20)))  # The list would take 1.8 GB.
    assert (tmp_path / DEVKIT.name).stat().st_size < 200_000


# ------------------------------------------------------------------------------------------------ indices

ONE = np.array([(512, 1, 0, 0, 0)], format.ENTRY)
CONTENT = format.index_bytes([ONE])


def shards(folder: Path, **changes: object) -> Path:
    """Return a split of one shard with a changed index."""
    content = format.index_bytes([ONE])
    name = changes.pop("name", "a.tar")
    facts = {"bytes": 10240, "images": 1, "sha256": "0" * 64}
    digest = changes.pop("index_sha256", hashlib.sha256(content).hexdigest())
    shard = format.Shard(name, **{key: changes.pop(key, value) for key, value in facts.items()})
    manifest = format.Manifest(changes.pop("classes", ("cat",)), (shard,), digest, {})
    (folder / "val").mkdir(parents=True, exist_ok=True)
    (folder / "val" / "index.npy").write_bytes(content)
    (folder / "val" / "a.tar").write_bytes(tar({"a.jpg": b"a", "a.cls": b"0"}).ljust(10240, b"\0"))
    (folder / "val" / "index.json").write_text(manifest.to_text())
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index_sha256", "../../../../tmp/canary"),
        ("index_sha256", "A" * 64),
        ("index_sha256", 7),
        ("sha256", "/tmp/canary"),
        ("bytes", -1),
        ("bytes", 1e300),
        ("images", True),
        ("name", 7),
        ("name", "\x1b[2J.tar"),
        ("name", "a\0.tar"),
        ("name", "../a.tar"),
        ("classes", (7,)),
        ("classes", ("x",) * 70_000),
    ],
)
def test_a_list_of_shards_that_names_other_things(tmp_path: Path, field: str, value: object) -> None:
    """Checksums become names of files in the cache folder. The control is the same list without the change."""
    assert len(ShardReader(str(shards(tmp_path)), "val")) == 1
    with pytest.raises(DataError, match=r"index\.json") as caught:
        ShardReader(str(shards(tmp_path, **{field: value})), "val")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 10**6, "[]", "7", '{"format": "seresnext-shards-1"}', "{" * 100])
def test_a_damaged_list_of_shards_is_refused(tmp_path: Path, text: str) -> None:
    (shards(tmp_path) / "val" / "index.json").write_text(text)
    with within(2), pytest.raises(DataError, match=r"index\.json is no index of shards"):
        ShardReader(str(tmp_path), "val")


def saved(array: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        CONTENT[:-1],
        CONTENT + b"\0",
        CONTENT.replace(b"'<u4'", b"'>u4'", 1),
        CONTENT.replace(b"False", b"True "),
        CONTENT.replace(b"(1,)", b"(2,)"),
        saved(np.zeros(2)),
        saved(np.array([(512, 2**32 - 1, 0, 0, 0)], format.ENTRY)),
        saved(np.array([(512, 1, 0, 0, 9)], format.ENTRY)),
    ],
    ids=lambda content: repr(content[-60:])[:60],
)
def test_a_list_of_images_that_is_made_up(tmp_path: Path, content: bytes) -> None:
    """The checksum is right, since an attacker can compute the checksum."""
    split = shards(tmp_path, index_sha256=hashlib.sha256(content).hexdigest()) / "val"
    (split / "index.npy").write_bytes(content)
    with within(1), pytest.raises(DataError, match=r"index\.npy is damaged or of other shards"):
        ShardReader(str(tmp_path), "val")


@pytest.mark.parametrize("count", [1, 9, 100_000])
def test_a_list_of_images_that_is_right(tmp_path: Path, count: int) -> None:
    content = saved(ONE.repeat(count))
    split = shards(tmp_path, index_sha256=hashlib.sha256(content).hexdigest(), images=count) / "val"
    (split / "index.npy").write_bytes(content)
    assert ShardReader(str(tmp_path), "val")._index.tolist() == ONE.tolist() * count


def test_a_list_of_images_of_a_terabyte(tmp_path: Path) -> None:
    os.truncate(shards(tmp_path) / "val" / "index.npy", 1 << 40)
    with within(1), pytest.raises(DataError, match=r"index\.npy .*1 images"):
        ShardReader(str(tmp_path), "val")
