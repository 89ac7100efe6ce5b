"""The file of weights for a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from seresnext.errors import CheckpointError
from seresnext.models import MODELS, find_weights

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("inner", ["", "checkpoints"])
def test_a_run_folder_is_its_best_or_its_last(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000001.safetensors").touch()
    with pytest.raises(CheckpointError, match="best"):
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
    with pytest.raises(CheckpointError, match=address.partition("//")[0] + "//"):
        find_weights(Path(address))


@pytest.mark.parametrize("name", MODELS)
def test_a_published_file_that_is_not_there_has_an_address(name: str, tmp_path: Path) -> None:
    row = MODELS[name]
    with pytest.raises(CheckpointError, match="download") as caught:
        find_weights(tmp_path / row.weights_file)
    assert row.weights_url in str(caught.value)
    assert f": {row.weights_url}\n" in README.read_text()
    assert row.weights_url.endswith(f"/{row.weights_file}")
    (tmp_path / row.weights_file).touch()
    assert find_weights(tmp_path / row.weights_file) == tmp_path / row.weights_file
