"""Lists of photos: CSV and JSON Lines. All mistakes come in one message, with the numbers of the lines."""

from pathlib import Path

import pytest

from seresnext.data.readers.photo_list import read_photo_list
from seresnext.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg", "a b.jpg", "ä,.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, text: str | bytes, name: str = "list.csv") -> dict[str, tuple[str, str]]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_photo_list(folder / name)


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\n2.jpg,b,Validation\n1.jpg,a,\n",
        "\ufeffPath;LABEL;split;note\r\n2.jpg;b;val;x\r\n\r\n1.jpg;a;;y\r\n",
        '"path","label","split"\r\n"1.jpg","a",""\r\n"2.jpg","b","val"\r\n',
        "split\tlabel\tpath\nvalid\tb\t2.jpg\n\ta\t1.jpg",
    ],
)
def test_csv_of_other_programs(folder, text):
    assert list(read(folder, text).items()) == [("1.jpg", ("a", "train")), ("2.jpg", ("b", "val"))]


def test_quotes_spaces_and_numbers(folder):
    found = read(folder, 'label,path\n"a, b",a b.jpg\n7,"ä,.jpg"\n')
    assert found == {"a b.jpg": ("a, b", "train"), "ä,.jpg": ("7", "train")}
    lines = '{"path": "1.jpg", "label": 7, "split": "test"}\n\n{"label": "x", "path": "2.jpg", "split": null}\n'
    assert read(folder, lines, "list.JSONL") == {"1.jpg": ("7", "test"), "2.jpg": ("x", "train")}
    assert read(folder, '{"path": "1.jpg", "label": 0}', "list.jsonl") == {"1.jpg": ("0", "train")}


def test_all_mistakes_come_at_once_with_the_lines(folder):
    with pytest.raises(DataError) as caught:
        read(folder, "path,label,split\n1.jpg,a,train\nnone.jpg,a,\n,a,\n2.jpg,,dev\n1.jpg,b,val\n2.jpg,a,b,c\n..,a,\n")
    heading, *lines = str(caught.value).split("\n  ")
    assert heading == f"{folder}/list.csv cannot be used; correct 7 mistakes:"
    assert lines == [
        "line 3: there is no file none.jpg",
        "line 4: path is missing",
        "line 5: label is missing",
        "line 5: split is dev, not train, val, valid, validation, test",
        "line 6: 1.jpg is in line 2, too",
        "line 7: more than 3 values",
        "line 8: there is no file ..",
    ]


def test_mistakes_of_json_lines(folder):
    with pytest.raises(DataError) as caught:
        read(folder, '{"path": "1.jpg", "label": "a"}\n{"path"\n["1.jpg"]\n' + "[" * 100_000, "list.jsonl")
    lines = str(caught.value).split("\n  ")[1:]
    assert [line.partition(" (")[0] for line in lines] == [
        "line 2: this is not JSON",
        "line 3: this is no JSON object with path and label",
        "line 4: this is not JSON",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg,a\n", "has the columns 1.jpg, a in the first line; name the columns path, label"),
        ("", "has the columns - in the first line"),
        ("path,label\n", "lists no photos; write a line with path and label"),
        (b"path,label\n\xff.jpg,a\n", r"list.csv:2 is not UTF-8 \(byte 0xff\); save as UTF-8"),
        ('path,label\n"1.jpg,a\n', r"line [23]: this is not CSV \(unexpected end of data\)"),
        ("path,label\n\x1b[2J.jpg,a\n", r"there is no file \\x1b\[2J.jpg"),
    ],
)
def test_a_list_that_cannot_be_used(folder, text, message):
    with pytest.raises(DataError, match=message):
        read(folder, text)


def test_many_mistakes_are_a_screen(folder):
    with pytest.raises(DataError, match=r"correct 499 mistakes:(\n  .*){10}\n  ... and 489 more$"):
        read(folder, "path,label\n" + "x,y\n" * 250)
