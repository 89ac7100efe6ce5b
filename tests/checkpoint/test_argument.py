"""The checkpoint that `--resume` names: a file, or a refusal that names the fix."""

import pytest

from seresnext.checkpoint.argument import checkpoint_argument
from seresnext.errors import UsageError


def refusal(given) -> str:
    with pytest.raises(UsageError) as caught:
        checkpoint_argument(str(given))
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_a_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.touch()
    assert checkpoint_argument(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_argument("~/x.safetensors") == path


def test_no_file(tmp_path):
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


def test_an_address():
    assert "https://host//last.safetensors" in refusal("https://host//last.safetensors")
    assert "Download" in refusal("s3:/bucket/last.safetensors")
