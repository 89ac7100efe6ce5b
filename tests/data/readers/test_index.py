import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indices import COLUMNS, assert_same, contents

from seresnext.data.readers import index as module
from seresnext.data.readers.index import Index, NotAnIndex, digest_of, index_by_class, write_index


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of an index of `contents()`."""
    write_index(tmp_path / "i", contents())
    return tmp_path / "i"


def test_a_written_index_is_read(path: Path):
    said, index = contents(), Index.open(path)
    assert_same(index, said)
    assert (len(index), digest_of(index), index.path) == (10, digest_of(said), path)
    names = said.names.tobytes()
    starts = [0, *said.name_ends[:-1]]
    assert [index.stored_name(i).encode() for i in range(10)] == [
        names[a:b] for a, b in zip(starts, said.name_ends, strict=True)
    ]
    assert list(path.parent.iterdir()) == [path]


@given(st.integers(1, 40), st.sampled_from([1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]))
def test_columns_are_as_narrow_as_they_can_be(tmp_path_factory: pytest.TempPathFactory, count: int, largest: int):
    path = tmp_path_factory.mktemp("index") / "i"
    values = np.linspace(0, largest, count).astype(np.uint64)
    values[-1] = largest
    write_index(path, Index(("a",), "", np.zeros(count, np.int64), offset=values))
    index = Index.open(path)
    np.testing.assert_array_equal(index.offset, values)
    assert index.offset.dtype.itemsize == np.min_scalar_type(largest).itemsize
    assert index.label.dtype == np.uint8


def test_arrays_are_views_of_the_file_and_cannot_be_written(path: Path):
    index = Index.open(path)
    for name in COLUMNS:
        column = getattr(index, name)
        assert not column.flags.owndata
        assert not column.flags.writeable
        assert column.ctypes.data % column.itemsize == 0


def test_an_open_index_outlives_its_replacement(path: Path):
    index = Index.open(path)
    write_index(path, contents(20, seed=1))
    assert_same(index, contents())


def test_the_digest_is_of_everything_and_of_no_type():
    said = contents()
    assert digest_of(replace(said, label=said.label.astype(np.int64))) == digest_of(contents())
    others = [contents(seed=1), contents(9), replace(said, classes=("a", "b", "c"))]
    others += [replace(said, fingerprint=""), replace(said, notices=("3 .webp",))]
    for name in COLUMNS:
        column = getattr(said, name).copy()
        column[-1] ^= 1
        others.append(replace(said, **{name: column}))
    assert len({digest_of(each) for each in (said, *others)}) == 1 + len(others)


def test_other_files_are_no_index(path: Path):
    """The first 8 bytes hold the length of the header."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    start = 8 + int.from_bytes(whole[:8], "little")
    others = [whole[:length] for length in (*range(40), *range(40, len(whole), 3), len(whole) - 1)]
    others += [whole[:8] + rng.bytes(length) for length in (*range(64), 1000, 10_000)]
    others += [whole + b"\0", b"X" + whole[1:]]
    others += [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(start)]
    for content in others:
        path.write_bytes(content)
        with pytest.raises(NotAnIndex):
            Index.open(path)
    path.unlink()
    with pytest.raises(NotAnIndex):
        Index.open(path)
    path.write_bytes(whole)
    assert_same(Index.open(path), contents())


def test_a_flipped_bit_in_any_column_is_found(tmp_path: Path):
    """Each bit of each column matters: a label or an offset would change."""
    path = tmp_path / "i"
    write_index(path, contents(3))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - start == sum(getattr(Index.open(path), name).nbytes for name in COLUMNS)
    for position in range(start, len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(NotAnIndex, match=r"is damaged \(another checksum\)"):
                Index.open(path)
    path.write_bytes(whole)
    assert_same(Index.open(path), contents(3))


def test_an_index_of_another_version_has_another_digest(monkeypatch: pytest.MonkeyPatch):
    """The digest is the name of the file."""
    digest = digest_of(contents())
    monkeypatch.setattr(module, "VERSION", 0)
    assert digest_of(contents()) != digest


def test_a_failed_write_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(file: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_index(path, contents(20))
    assert_same(Index.open(path), contents())
    assert len(list(path.parent.iterdir())) == 1


def test_the_columns_of_sorted_images():
    """The fingerprint is part of checkpoints: the same images have the same fingerprint in all versions."""
    columns = index_by_class({"a": ["1.jpg"], "b": ["2.jpg", "\udcff.jpg"]}, ("notice",))
    numbers = struct.pack("<5q", 1, 2, 5, 10, 15)
    assert columns.fingerprint == hashlib.sha256(b"a\0b" + numbers + b"1.jpg2.jpg\xff.jpg").hexdigest()
    assert (columns.classes, columns.notices) == (("a", "b"), ("notice",))
    assert columns.label.tolist() == [0, 1, 1]
    assert (columns.names.tobytes(), columns.name_ends.tolist()) == (b"1.jpg2.jpg\xff.jpg", [5, 10, 15])
