"""Images by path: files, folders, patterns and lists."""

import os
from pathlib import Path

import pytest

from seresnext.data.readers.paths import PathReader, expand
from seresnext.errors import DataError

FILES = ("a.png", "b.JPG", "sub/c.jpeg", "sub/deep/d.png", "sub/note.txt", ".hidden/e.png", "[x]/f.png", "g.mov")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["b.JPG", "a.png", "b.JPG"], ["b.JPG", "a.png", "b.JPG"]),
        (["."], ["./a.png", "./b.JPG", "./[x]/f.png", "./sub/c.jpeg", "./sub/deep/d.png"]),
        (["sub/", "a.png"], ["sub/c.jpeg", "sub/deep/d.png", "a.png"]),
        (["[x]"], ["[x]/f.png"]),  # A file with this name is no pattern.
        (["[x]/f.png"], ["[x]/f.png"]),
        (["*.png", "./s?b"], ["a.png", "./sub/c.jpeg", "./sub/deep/d.png"]),
        (["none.png"], ["none.png"]),  # Reported later, as a bad image.
        (["-", "a.png"], ["b.JPG", "sub/c.jpeg", "sub/deep/d.png", "\udcff", "a.png"]),
    ],
)
def test_words_stand_for_images_in_order(here, words, paths):
    assert list(expand(words, [b"b.JPG\n", b"\n", b"sub\r\n", b"\xff"])) == paths


def test_a_deep_pattern_gives_each_file_once(here):
    assert list(expand(["**/*.png"], ())) == ["[x]/f.png", "a.png", "sub/deep/d.png"]
    assert sorted(expand(["sub/**"], ())) == ["sub/c.jpeg", "sub/deep/d.png", "sub/note.txt"]


def test_links_are_followed_and_a_loop_ends(here, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "z.png").touch()
    (here / "sub" / "deep" / "up").symlink_to(here)
    (here / "sub" / "other").symlink_to(other)
    assert list(expand(["sub"], ())) == [
        "sub/c.jpeg",
        "sub/deep/d.png",
        "sub/deep/up/a.png",
        "sub/deep/up/b.JPG",
        "sub/deep/up/[x]/f.png",
        "sub/other/z.png",
    ]


def test_skipped_files_are_counted(here, capsys):
    list(expand(["."], ()))
    assert "skipped files: 1 .mov (a text), 1 .txt (a text)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("empty", "empty has no images;"),
        ("web", r"web has no images \(1 .mov \(a text\)\)"),
        ("*.gif", "matches no file"),
    ],
)
def test_nothing_is_an_error(here, word, message):
    (here / "empty").mkdir()
    (here / "web").mkdir()
    (here / "g.mov").rename(here / "web" / "g.mov")
    with pytest.raises(DataError, match=message):
        list(expand(["a.png", word], ()))


def test_the_reader_gives_names_and_bytes(here):
    os.mkfifo(here / "pipe")
    names = ["b.JPG", "\udcff", "a.png", "none", "a\0b", "sub", "pipe", "a.png"]
    reader = PathReader(names)
    assert [reader.name(index) for index in range(len(reader))] == names
    assert [reader.read(index) for index in (0, 2, 7)] == [b"b.JPG", b"a.png", b"a.png"]
    for index in (1, 3, 4, 5, 6):
        with pytest.raises(DataError, match=r"cannot be read: .*; correct the path"):
            reader.read(index)
