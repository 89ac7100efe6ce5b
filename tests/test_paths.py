"""Addresses in place of paths, the home folder, and the checkpoint of `--resume`."""

import argparse
import itertools
import re
from pathlib import Path

import pytest

from seresnext.errors import UsageError
from seresnext.paths import checkpoint_argument, expand_home, is_remote, path_argument, text_argument


@pytest.mark.parametrize("given", ["http://h/a", "https://h//a?x=//", "s3://b/a", "hf://a", "simplecache::s3://b/a"])
def test_an_address_is_not_a_path(given):
    assert is_remote(given)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(given)):
        path_argument(given)
    assert "Download" in refusal(given)


def test_the_home_folder_and_texts_that_are_no_path(monkeypatch):
    monkeypatch.setenv("HOME", "/house")
    assert path_argument("~/runs/a b") == expand_home(Path("~/runs/a b")) == Path("/house/runs/a b")
    for path in ("a/~", "./~", "~nobody-of-this-name/a", "a:/b", "https:", "C:\\a"):
        assert not is_remote(path)
        assert path_argument(path) == Path(path)
    assert text_argument("~/images") == "/house/images"
    for empty, argument in itertools.product(("", " "), (path_argument, text_argument)):
        with pytest.raises(argparse.ArgumentTypeError, match="the value is empty"):
            argument(empty)
    with pytest.raises(argparse.ArgumentTypeError, match=r"x\.\.\.: File name too long; give another path"):
        path_argument("x" * 300)


def refusal(given) -> str:
    with pytest.raises(UsageError) as caught:
        checkpoint_argument(str(given))
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.touch()
    assert checkpoint_argument(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_argument("~/x.safetensors") == path


def test_no_checkpoint(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for given in (tmp_path / "other", tmp_path / "link", "x" * 5000, "a\0b", tmp_path, "/dev/null", ""):
        assert "Give auto, never, or the path" in refusal(given)


def test_the_newest_checkpoint_of_a_folder_is_named(tmp_path):
    """The printed argument works unchanged, for a run folder and for the checkpoint folder."""
    newest = tmp_path / "checkpoints" / "last.safetensors"
    newest.parent.mkdir()
    assert "last.safetensors" not in refusal(tmp_path)
    newest.touch()
    for given in (tmp_path, newest.parent):
        assert checkpoint_argument(refusal(given).rpartition("--resume ")[2]) == newest
