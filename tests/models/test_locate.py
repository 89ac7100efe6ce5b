"""The file of weights for a path."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shard_folders import Server, serve

from seresnext.errors import CheckpointError
from seresnext.models import MODELS, find_weights, first_weights
from seresnext.models.locate import find_published
from seresnext.recipe.schema import ModelSection

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("inner", ["", "checkpoints"])
def test_a_run_folder_is_its_best_or_its_last(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000001.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"best\.safetensors and"):
        find_weights(tmp_path / inner)
    (folder / "last.safetensors").touch()
    assert find_weights(tmp_path / inner) == folder / "last.safetensors"
    (folder / "best.safetensors").touch()
    assert find_weights(str(tmp_path / inner)) == folder / "best.safetensors"


@pytest.mark.parametrize("name", ["none.pth", "x" * 5000, "a\0b"])
def test_other_paths_are_as_they_are(tmp_path: Path, name: str) -> None:
    assert find_weights(tmp_path / name) == tmp_path / name


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights("~/w.pth") == tmp_path / "w.pth"
    assert find_weights("~nobody-of-this-name/w.pth") == Path("~nobody-of-this-name/w.pth")


@pytest.mark.parametrize("address", ["http://host/a/w.pth", "https://host//w.pth?x=1", "s3://bucket/w", "hf://a/b"])
def test_addresses_are_shown_as_they_were_given(address: str) -> None:
    with pytest.raises(CheckpointError, match="download") as caught:
        find_weights(address)
    assert address in str(caught.value)


def test_the_readme_has_the_addresses() -> None:
    for row in MODELS.values():
        for url in row.weights_urls:
            assert f": {url}\n" in README.read_text()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, list[str]]]:
    """A server with both files of the 50, whose names have the digests of the contents."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "www").mkdir()
    names = []
    for content in (b"copy", b"original"):
        names.append(f"{content.decode()}-{hashlib.sha256(content).hexdigest()[:8]}.pth")
        (tmp_path / "www" / names[-1]).write_bytes(content)
    with serve(tmp_path / "www") as server:
        urls = tuple(f"{server.url}/{name}" for name in names)
        row = replace(MODELS["legacy_seresnext50_32x4d"], weights_urls=urls)
        monkeypatch.setitem(MODELS, "legacy_seresnext50_32x4d", row)
        yield server, names


def test_a_name_is_the_published_file(published: tuple[Server, list[str]], tmp_path: Path) -> None:
    server, (copy, original) = published
    cache = tmp_path / "hub" / "checkpoints"
    assert find_weights("seresnext50") == find_weights(Path("legacy_seresnext50_32x4d")) == cache / copy
    assert server.requests == {copy: 1}  # The second time, the file is in the cache.
    (cache / copy).unlink()
    server.failures[copy] = 1
    assert find_published("seresnext50").read_bytes() == b"original"
    assert find_published("seresnext50") == cache / original
    assert server.requests == {copy: 2, original: 1}
    section = ModelSection(name="seresnext50", weights="published")
    assert first_weights(section) == cache / original
    assert first_weights(section.model_copy(update={"weights": "w.pth"})) == Path("w.pth")


def test_a_path_comes_before_the_name_of_a_model(published: tuple[Server, list[str]]) -> None:
    Path("seresnext50").touch()
    assert find_weights("seresnext50") == Path("seresnext50")
    assert find_weights("./seresnext26") == Path("seresnext26")
    assert not published[0].requests


def test_a_damaged_file_in_the_cache_is_refused(published: tuple[Server, list[str]]) -> None:
    path = find_published("seresnext50")
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"is damaged: the SHA-256 is .*; remove the file, and download http"):
        find_published("seresnext50")


def test_without_a_network_the_message_has_addresses_and_folder(
    published: tuple[Server, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = MODELS["legacy_seresnext50_32x4d"]
    urls = tuple(f"http://127.0.0.1:9/{name}" for name in published[1])  # Nobody listens there.
    monkeypatch.setitem(MODELS, "legacy_seresnext50_32x4d", replace(row, weights_urls=urls))
    with pytest.raises(CheckpointError, match="the weights of seresnext50 are not on this machine") as caught:
        find_weights("seresnext50")
    for words in (*urls, f"to {tmp_path}/hub/checkpoints", "refused", "give the path of a file"):
        assert words in str(caught.value)
