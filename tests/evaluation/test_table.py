"""Tables of predictions, as files."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from seresnext.errors import DataError, Failure
from seresnext.evaluation.table import build_table, read_table, write_table

CLASSES = ["cat", 'd,o"g', "füchs\n", "<b>", "e", "f"]


@pytest.fixture
def logits():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def _table(logits, classes=CLASSES):
    names = [f"folder/{n}.jpg" for n in range(len(logits))]
    return build_table(names, np.array([0, 1, 2, 3, 4]), logits.numpy(), classes)


def test_the_numbers_are_torchs(logits):
    table, labels = _table(logits), torch.arange(5)
    values, places = logits.double().softmax(1).topk(5)
    for n in range(5):
        assert table[f"probability_{n + 1}"] == pytest.approx(values[:, n].tolist())
        assert table[f"prediction_{n + 1}"] == [CLASSES[k] for k in places[:, n].tolist()]
    expected = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert table["loss"] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "new folder/t.csv"])
def test_a_file_gives_the_table_back(logits, tmp_path, name):
    table = _table(logits)
    write_table(table, tmp_path / name)
    assert read_table(tmp_path / name) == table
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == ["t" + Path(name).suffix]


def test_other_programs_read_the_files(logits, tmp_path):
    for name in ("t.csv", "t.parquet"):
        write_table(_table(logits), tmp_path / name)
    numbered = [f"{kind}_{n}" for kind in ("prediction", "probability") for n in range(1, 6)]
    columns = ["image", "label", *numbered, "loss"]
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == columns
    parquet = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert parquet.column_names == columns
    assert parquet["label"].to_pylist() == [row["label"] for row in rows]


def test_of_equal_logits_the_lower_class_is_first():
    table = _table(torch.zeros(5, 6))
    assert [table[f"prediction_{n}"][0] for n in range(1, 6)] == CLASSES[:5]


def test_a_table_of_two_classes_has_two_predictions(tmp_path):
    table = build_table(["a"], np.array([1]), np.array([[0.0, 1.0]]), ["x", "y"])
    write_table(table, tmp_path / "t.csv")
    found = read_table(tmp_path / "t.csv")
    assert (found["prediction_1"], found["prediction_2"], "prediction_3" in found) == (["y"], ["x"], False)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "image,label\nx\n", "\0", "image,label,prediction_1,probability_1,loss\na,b,c,x,1\n"]
)
def test_another_file_is_refused(tmp_path, text):
    for name in ("t.csv", "t.parquet"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name} is no table of predictions; write one"):
            read_table(tmp_path / name)


def test_a_table_of_lists_is_refused(tmp_path):
    columns = {name: [["a"]] for name in ("image", "label", "prediction_1")}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet is no table of predictions; write one"):
        read_table(tmp_path / "t.parquet")


def test_a_missing_file_and_a_folder_that_is_a_file(tmp_path, logits):
    with pytest.raises(DataError, match=r"missing\.csv cannot be read"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match=r"t\.csv cannot be written"):
        write_table(_table(logits), tmp_path / "file" / "t.csv")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_name_that_is_no_utf_8_is_written_with_escapes(tmp_path, name):
    """Linux allows such names of folders. `\\udcff` is the byte 255."""
    table = build_table(["a\udcff/1.png"], np.array([1]), np.array([[0.0, 1.0]]), ["x", "a\udcff"])
    write_table(table, tmp_path / name)
    found = read_table(tmp_path / name)
    assert (found["image"], found["label"]) == (["a\\udcff/1.png"], ["a\\udcff"])
