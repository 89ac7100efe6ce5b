"""The files of predictions and features."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from seresnext.errors import Failure, UsageError
from seresnext.run.predict_output import Row, choose_format, write_features, write_rows

ROWS = [Row("a.png", [("cat", 0.9), ("dog", 0.1)]), Row("b\udcff,\n.png", (), "no image"), Row("c", [("\ud800", 1.0)])]


@pytest.mark.parametrize(
    ("output", "given", "chosen"),
    [
        (None, None, "table"),
        (None, "csv", "csv"),
        ("a.jsonl", None, "jsonl"),
        ("a.parquet", "csv", "csv"),
        ("a.txt", None, "table"),
    ],
)
def test_the_ending_gives_the_format(output, given, chosen):
    assert choose_format(output and Path(output), given, None) == chosen


TEXTS = {
    "table": "a.png\n   90.00 %  cat\n   10.00 %  dog\nb\\udcff,\\n.png\n  bad image, no result\n"
    "c\n  100.00 %  \\ud800\n",
    "csv": "path,prediction_1,prediction_2,probability_1,probability_2,error\n"
    'a.png,cat,dog,0.9,0.1,\n"b\\udcff,\n.png",,,,,no image\nc,\\ud800,,1.0,,\n',
}
COLUMNS = ["path", "prediction_1", "prediction_2", "probability_1", "probability_2", "error"]


@pytest.mark.parametrize("output_format", ["table", "jsonl", "csv", "parquet"])
def test_rows_are_written_with_any_names(tmp_path, output_format):
    path = tmp_path / "rows"
    write_rows(ROWS, path, output_format, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["rows"]
    if output_format == "parquet":
        table = pyarrow.parquet.read_table(path)
        assert table.column_names == COLUMNS
        assert table.to_pylist()[1] == dict.fromkeys(COLUMNS) | {"path": "b\\udcff,\n.png", "error": "no image"}
    elif output_format == "jsonl":
        for row, line in zip(ROWS, map(json.loads, path.read_text().splitlines()), strict=True):
            found = [(each["class"], each["probability"]) for each in line.get("predictions", ())]
            assert (line["path"], found, line.get("error", "")) == (row.path, list(row.predictions), row.error)
    else:
        assert path.read_text() == TEXTS[output_format]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_no_control_characters(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    write_rows([Row("a\x1b[2J", [("cat", 1.0)])], None, "csv", 1)
    assert capsys.readouterr().out.splitlines()[1] == ("a\\x1b[2J,cat,1.0," if is_terminal else "a\x1b[2J,cat,1.0,")


@pytest.mark.parametrize("count", [0, 12])
def test_features_are_read_by_numpy_and_pyarrow(tmp_path, count):
    features = np.random.default_rng(0).normal(size=(count, 7)).astype(np.float32)
    for name in ("f.npy", "f.parquet"):
        write_features([f"{n}" for n in range(count)], features, tmp_path / name)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), features)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table == {"path": list(map(str, range(count))), "features": features.tolist()}


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_a_write_that_fails_names_the_file_and_leaves_none(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Path, "with_name", lambda path, new: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: removed.append(path))
    removed: list[Path] = []
    with pytest.raises(Failure, match=rf"{name} cannot be written: No space left on device; choose another file"):
        write_features(["a"], np.zeros((1, 9), np.float32), tmp_path / name)
    assert removed == [Path("/dev/full")]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named_before_the_work(without):
    without("pyarrow")
    for output, features in (("rows.parquet", None), (None, "f.parquet")):
        with pytest.raises(UsageError, match=r'pip install "seresnext\[report\]"'):
            choose_format(output and Path(output), None, features and Path(features))
    assert choose_format(Path("rows.csv"), None, Path("f.npy")) == "csv"  # The control.


def test_a_missing_folder_is_made_and_a_file_in_its_place_is_named(tmp_path):
    write_features([], np.zeros((0, 2), np.float32), tmp_path / "new" / "f.npy")
    with pytest.raises(UsageError, match=r"f\.npy/f\.npy cannot be written"):
        choose_format(None, None, tmp_path / "new" / "f.npy" / "f.npy")
