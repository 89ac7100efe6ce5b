from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indices import COLUMNS, assert_same, contents

from seresnext.data.readers import index as module
from seresnext.data.readers.index import Index, IndexColumns, NotAnIndex, digest_of, fingerprint_of, write_index
from seresnext.errors import DataError

# ------------------------------------------------------------------------------------------------ the file


def test_a_written_index_is_read(tmp_path: Path):
    said = contents()
    write_index(tmp_path / "i", said)
    index = Index.open(tmp_path / "i")
    assert_same(index, said)
    assert (len(index), index.digest, index.path) == (10, digest_of(said), tmp_path / "i")
    names = said.names.tobytes()
    starts = [0, *said.name_ends[:-1]]
    assert [index.stored_name(i).encode() for i in range(10)] == [
        names[a:b] for a, b in zip(starts, said.name_ends, strict=True)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


@given(st.integers(1, 40), st.sampled_from([1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]))
def test_columns_are_as_narrow_as_they_can_be(tmp_path_factory: pytest.TempPathFactory, count: int, largest: int):
    path = tmp_path_factory.mktemp("index") / "i"
    values = np.linspace(0, largest, count).astype(np.uint64)
    values[-1] = largest
    write_index(path, IndexColumns(("a",), "", np.zeros(count, np.int64), offset=values))
    index = Index.open(path)
    np.testing.assert_array_equal(index.offset, values)
    assert index.offset.dtype.itemsize == np.min_scalar_type(largest).itemsize
    assert index.label.dtype == np.uint8


def test_arrays_are_views_of_the_file_and_cannot_be_written(tmp_path: Path):
    write_index(tmp_path / "i", contents())
    index = Index.open(tmp_path / "i")
    for name in COLUMNS:
        column = getattr(index, name)
        assert not column.flags.owndata
        assert not column.flags.writeable
        assert column.ctypes.data % column.itemsize == 0


def test_an_index_travels_as_its_path(tmp_path: Path):
    write_index(tmp_path / "small", contents(10))
    write_index(tmp_path / "large", contents(10_000))
    sizes = [len(pickle.dumps(Index.open(tmp_path / name))) for name in ("small", "large")]
    assert sizes[0] == sizes[1] < 300
    assert_same(pickle.loads(pickle.dumps(Index.open(tmp_path / "large"))), contents(10_000))


def test_an_index_that_was_replaced_does_not_arrive(tmp_path: Path):
    write_index(tmp_path / "i", contents())
    sent = pickle.dumps(Index.open(tmp_path / "i"))
    write_index(tmp_path / "i", contents(seed=1))
    with pytest.raises(DataError, match=str(tmp_path / "i")):
        pickle.loads(sent)
    write_index(tmp_path / "i", contents())
    assert_same(pickle.loads(sent), contents())


def test_a_removed_or_damaged_index_is_an_error_in_another_process(tmp_path: Path):
    path = tmp_path / "i"
    write_index(path, contents())
    sent = pickle.dumps(Index.open(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="was removed or damaged during the run"):
        pickle.loads(sent)
    path.unlink()
    with pytest.raises(DataError, match=r"was removed or damaged during the run: .*i: .*No such file"):
        pickle.loads(sent)


def test_an_open_index_outlives_its_replacement(tmp_path: Path):
    write_index(tmp_path / "i", contents())
    index = Index.open(tmp_path / "i")
    write_index(tmp_path / "i", contents(20, seed=1))
    assert_same(index, contents())


def test_the_digest_is_of_everything_and_of_no_type():
    said = contents()
    assert digest_of(replace(said, label=said.label.astype(np.int64))) == digest_of(contents())
    others = [contents(seed=1), contents(9), replace(said, classes=("a", "b", "c")), replace(said, files=())]
    others += [replace(said, fingerprint=""), replace(said, notices=("3 .webp",))]
    for name in COLUMNS:
        column = getattr(said, name).copy()
        column[-1] ^= 1
        others.append(replace(said, **{name: column}))
    assert len({digest_of(each) for each in (said, *others)}) == 1 + len(others)


def test_an_index_cut_to_any_length_is_no_index(tmp_path: Path):
    """The first 24 bytes hold the mark, and the length and checksum of the header."""
    path = tmp_path / "i"
    write_index(path, contents())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(NotAnIndex):
            Index.open(path)
    rng = np.random.default_rng(0)
    for length in (*range(64), 1000, 10_000):
        path.write_bytes(whole[:8] + rng.bytes(length))
        with pytest.raises(NotAnIndex):
            Index.open(path)
    path.write_bytes(whole)
    assert_same(Index.open(path), contents())


def test_other_files_are_no_index(tmp_path: Path):
    path = tmp_path / "i"
    with pytest.raises(NotAnIndex):
        Index.open(path)
    write_index(path, contents())
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:30], whole[:-1], whole + b"\0", b"X" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(NotAnIndex):
            Index.open(path)
    for place in range(8, 24 + len(whole) // 4):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        if place < 24 + int.from_bytes(whole[8:16], "little"):
            with pytest.raises(NotAnIndex):
                Index.open(path)


def test_a_flipped_bit_in_any_column_is_found(tmp_path: Path):
    """Each bit of each column matters: a label or an offset would change."""
    path = tmp_path / "i"
    write_index(path, contents(3))
    whole = path.read_bytes()
    table = json.loads(whole[24 : 24 + int.from_bytes(whole[8:16], "little")])["columns"]
    assert [name for name, *_ in table] == list(COLUMNS)
    for name, kind, count, place, _ in table:
        for position in range(place, place + count * np.dtype(kind).itemsize):
            for bit in range(8):
                path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
                with pytest.raises(NotAnIndex, match=f"the column '{name}' is damaged"):
                    Index.open(path)
    path.write_bytes(whole)
    assert_same(Index.open(path), contents(3))


def test_an_index_of_another_version_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "VERSION", 0)
        write_index(tmp_path / "i", contents())
    with pytest.raises(NotAnIndex, match="another version"):
        Index.open(tmp_path / "i")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_index(tmp_path / "i", contents())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_index(tmp_path / "i", contents(20))
    assert_same(Index.open(tmp_path / "i"), contents())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_is_of_classes_counts_and_names():
    counts, ends = np.array([1, 2]), np.array([1, 2, 4])
    same = fingerprint_of(["a", "b"], counts, ends, b"xyzz")
    assert same == fingerprint_of(("a", "b"), counts.astype(np.uint8), ends.astype(np.uint64), b"xyzz")
    others = [
        fingerprint_of(["a", "c"], counts, ends, b"xyzz"),
        fingerprint_of(["a", "b"], counts[::-1], ends, b"xyzz"),
        fingerprint_of(["a", "b"], counts, np.array([1, 3, 4]), b"xyzz"),
        fingerprint_of(["a", "b"], counts, ends, b"xyzw"),
    ]
    assert len({same, *others}) == 5
    assert same != hashlib.sha256().hexdigest()


def test_contents_can_be_partly_empty(tmp_path: Path):
    said = replace(contents(), names=np.empty(0, np.uint8), name_ends=np.empty(0, np.uint8))
    write_index(tmp_path / "i", said)
    assert_same(Index.open(tmp_path / "i"), said)
