"""Addresses in place of paths, and the home folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from seresnext.paths import address_in, expand_home, path_argument


@pytest.mark.parametrize("given", ["http://h/a", "https://h//a?x=//", "s3://b/a", "hf://a", "simplecache::s3://b/a"])
def test_an_address_is_not_a_path(given):
    assert address_in(given) == given
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        path_argument(given)
    assert given in str(caught.value)


def test_the_lost_slash_of_an_address_is_restored():
    assert address_in(Path("https://host/a/b.pth")) == "https://host/a/b.pth"
    for path in ("a", "/a/b", "./https/a", "a:/b", "https:", "C:\\a"):
        assert address_in(path) is None
        assert path_argument(path) == Path(path)


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/house")
    assert path_argument("~/runs/a b") == expand_home(Path("~/runs/a b")) == Path("/house/runs/a b")
    for path in ("a/~", "./~", "~nobody-of-this-name/a"):
        assert path_argument(path) == Path(path)
