"""The files of predictions and features."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from seresnext.errors import Failure, UsageError
from seresnext.run import predict_output
from seresnext.run.predict_output import Row, choose_format, open_features, open_rows

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


@pytest.mark.parametrize("output_format", ["table", "jsonl", "csv", "parquet"])
def test_rows_are_written_with_any_names(tmp_path, output_format):
    path = tmp_path / "rows"
    with open_rows(path, output_format, 2) as write:
        write(ROWS[:1])
        assert not path.exists()
        write(ROWS[1:])
    assert [each.name for each in tmp_path.iterdir()] == ["rows"]
    if output_format == "parquet":
        table = pyarrow.parquet.read_table(path)
        assert table.column_names == [
            "path", "prediction_1", "prediction_2", "probability_1", "probability_2", "error"
        ]  # fmt: skip
        assert table.to_pylist()[1] == dict.fromkeys(table.column_names) | {
            "path": "b\\udcff,\n.png",
            "error": "no image",
        }
        return
    text = path.read_text()
    if output_format == "jsonl":
        assert [json.loads(line) for line in text.splitlines()] == [
            {
                "path": "a.png",
                "predictions": [{"class": "cat", "probability": 0.9}, {"class": "dog", "probability": 0.1}],
            },
            {"path": "b\udcff,\n.png", "error": "no image"},
            {"path": "c", "predictions": [{"class": "\ud800", "probability": 1.0}]},
        ]
    elif output_format == "csv":
        assert text.splitlines()[:2] == [
            "path,prediction_1,prediction_2,probability_1,probability_2,error",
            "a.png,cat,dog,0.9,0.1,",
        ]
        assert '"b\\udcff,\n.png",,,,,no image\n' in text
    else:
        assert text.splitlines() == [
            "a.png",
            "   90.00 %  cat",
            "   10.00 %  dog",
            "b\\udcff,\\n.png",
            "  bad image, no result",
            "c",
            "  100.00 %  \\ud800",
        ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_no_control_characters(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    with open_rows(None, "csv", 1) as write:
        write([Row("a\x1b[2J", [("cat", 1.0)])])
    assert capsys.readouterr().out.splitlines()[1] == ("a\\x1b[2J,cat,1.0," if is_terminal else "a\x1b[2J,cat,1.0,")


def test_row_groups_bound_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(predict_output, "_GROUP", 5)
    features = np.arange(36, dtype=np.float32).reshape(12, 3)
    with open_features(tmp_path / "f.parquet", 3) as write:
        for start in range(0, 12, 3):
            write([f"{n}" for n in range(start, start + 3)], features[start : start + 3])
    file = pyarrow.parquet.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [6, 6]
    table = file.read().to_pydict()
    assert table["path"] == list(map(str, range(12)))
    assert table["features"] == features.tolist()


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_numpy_reads_the_features(tmp_path, batches):
    features = np.random.default_rng(0).normal(size=(batches, 4, 7)).astype(np.float32)
    with open_features(tmp_path / "f", 7) as write:
        for batch in features:
            write(["x"] * 4, batch[:, ::1])
    np.testing.assert_array_equal(np.load(tmp_path / "f"), features.reshape(-1, 7))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_write_that_fails_names_the_file_and_leaves_none(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Path, "with_name", lambda path, new: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: removed.append(path))
    removed: list[Path] = []
    with (
        pytest.raises(Failure, match=rf"{name} cannot be written: No space left on device; choose another file"),
        open_rows(tmp_path / name, name.partition(".")[2], 2) as write,
    ):
        write(ROWS)
    assert removed == [Path("/dev/full")]
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_between_leaves_no_file(tmp_path):
    (tmp_path / "f.npy").write_bytes(b"old")
    with pytest.raises(TypeError), open_features(tmp_path / "f.npy", 2) as write:
        write(["a"], None)  # type: ignore[arg-type]
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("f.npy", b"old")]


def test_a_missing_extra_is_named_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r'pip install "seresnext\[report\]"'):
        open_rows(tmp_path / "rows.parquet", "parquet", 2).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_made_and_a_file_in_its_place_is_named(tmp_path):
    with open_features(tmp_path / "new" / "f.npy", 2):
        pass
    with pytest.raises(UsageError, match=r"f\.npy/f\.npy cannot be written: "):
        open_features(tmp_path / "new" / "f.npy" / "f.npy", 2).__enter__()
