from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from imagenet_archives import CLASSES, ILSVRC_IDS, devkit, meta_mat, tar, truth_of
from scipy.io import savemat

from seresnext.data.readers import devkit as module
from seresnext.data.readers.devkit import read_mat, read_validation_classes
from seresnext.errors import DataError


def kit(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("with_meta", [False, True])
def test_lines_become_wordnet_ids(tmp_path: Path, with_meta: bool):
    truth = truth_of(per_class=7)
    path = kit(tmp_path, devkit(truth, meta_mat() if with_meta else None))
    assert read_validation_classes(path) == truth
    assert {*truth} == {*CLASSES}


def test_a_kit_that_numbers_classes_otherwise_is_refused(tmp_path: Path):
    swapped = {**ILSVRC_IDS, "n01440764": ILSVRC_IDS["n02119789"], "n02119789": ILSVRC_IDS["n01440764"]}
    path = kit(tmp_path, devkit(truth_of(), meta_mat(swapped)))
    with pytest.raises(DataError, match=r"meta.mat, class 449 is n02119789 instead of n01440764"):
        read_validation_classes(path)


def test_a_table_of_an_unknown_form_settles_nothing(tmp_path: Path):
    assert read_validation_classes(kit(tmp_path, devkit(truth_of(), b"MATLAB 7.3 MAT-file" + bytes(400)))) == truth_of()


@pytest.mark.parametrize(("line", "shown"), [("0", "'0'"), ("1001", "'1001'"), ("x", "'x'"), ("\u0661", "")])
def test_a_number_that_is_no_class_is_named_with_its_line(tmp_path: Path, line: str, shown: str):
    content = tar({"data/ILSVRC2012_validation_ground_truth.txt": f"1\n1000\n{line}\n".encode()})
    with pytest.raises(DataError, match=rf"ILSVRC2012_validation_ground_truth.txt:3 has {shown}.*no class"):
        read_validation_classes(kit(tmp_path, gzip.compress(content)))


def test_other_files_are_no_kit(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_validation_classes(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    with pytest.raises(DataError, match="cannot be read: Not a gzipped file"):
        read_validation_classes(kit(tmp_path, b"<html>please log in</html>"))
    whole = devkit(truth_of())
    with pytest.raises(DataError, match="cannot be read: Compressed file ended"):
        read_validation_classes(kit(tmp_path, whole[:-200]))
    with pytest.raises(DataError, match=r"holds no ILSVRC2012_validation_ground_truth\.txt"):
        read_validation_classes(kit(tmp_path, gzip.compress(tar({"readme.txt": b""}))))
    twice = tar({"a/ILSVRC2012_validation_ground_truth.txt": b"1", "b/ILSVRC2012_validation_ground_truth.txt": b"2"})
    with pytest.raises(DataError, match="holds two files"):
        read_validation_classes(kit(tmp_path, gzip.compress(twice)))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 1 << 20)
    path = kit(tmp_path, gzip.compress(bytes(2 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        read_validation_classes(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_mat_files_are_read_as_scipy_writes_them(compressed: bool):
    rows = np.zeros((3, 1), [("number", "O"), ("text", "O"), ("longer_name", "O")])
    written = [(1.0, "n02119789", np.arange(5, dtype=np.int16)), (300.0, "ä, b", 7), (-2.5, "", np.empty((1, 0)))]
    for place, row in enumerate(written):
        rows[place, 0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"rows": rows, "alone": 3.0, "text": "hello"}, do_compression=compressed)
    found = read_mat(buffer.getvalue())
    assert found["alone"] == 3.0
    assert found["text"] == "hello"
    assert [row["number"] for row in found["rows"]] == [1.0, 300.0, -2.5]
    assert [row["text"] for row in found["rows"]] == ["n02119789", "ä, b", ""]
    assert found["rows"][0]["longer_name"].tolist() == [0, 1, 2, 3, 4]
    assert found["rows"][1]["longer_name"] == 7
    assert len(found["rows"][2]["longer_name"]) == 0


def test_the_generators_table_is_complete():
    """The check of numbers needs a table to compare."""
    rows = read_mat(meta_mat())["synsets"]
    leaves = {int(row["ILSVRC2012_ID"]): row["WNID"] for row in rows if row["num_children"] == 0}
    assert leaves == {number: name for name, number in ILSVRC_IDS.items()}


def test_a_link_in_the_kit_is_refused_by_name(tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("data/ILSVRC2012_validation_ground_truth.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"member 'data/ILSVRC2012_validation_ground_truth.txt' is a symbolic link"):
        read_validation_classes(kit(tmp_path, buffer.getvalue()))
