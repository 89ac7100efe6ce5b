"""The upload to the Hub, against a stand-in on 127.0.0.1."""

import re
import sys
from pathlib import Path

import pytest
import torch
from exports import run
from hub_server import serve_hub

LOAD = """
import sys, timm, torch
model = timm.create_model("hf-hub:lab/ants", pretrained=True).eval()
with torch.inference_mode():
    torch.save(model(torch.ones(1, 3, 64, 64)), sys.argv[1])
"""


@pytest.mark.full
def test_a_pushed_folder_loads_from_the_hub(checkpoint: Path, oracles, run_command, tmp_path: Path):
    """The stand-in gets every file of the folder. timm loads the model from the stand-in by `hf-hub:`."""
    folder, result = tmp_path / "hub", tmp_path / "logits.pt"
    with serve_hub(tmp_path / "cache") as hub:
        words = ["--checkpoint", checkpoint, "--to", "hub", "--output", folder, "--push", "lab/ants"]
        done = run_command([sys.executable, "-m", "seresnext", "export", *words], env=hub.environment)
        assert done.returncode == 0, done.output
        assert f"pushed to {hub.address}/lab/ants" in done.stdout
        assert hub.tokens == {"Bearer hf_test"}
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert hub.files["lab/ants"] == files
        loaded = run_command([sys.executable, "-c", LOAD, result], env=hub.environment)
        assert loaded.returncode == 0, loaded.output
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(result), oracles["ema"](torch.ones(1, 3, 64, 64)))


def test_the_token_of_this_machine_is_needed(checkpoint: Path, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    words = ["--checkpoint", checkpoint, "--to", "weights", "--output", tmp_path / "new"]
    assert run("export", *words, "--push", "lab/ants") == 2
    assert "hf auth login" in capsys.readouterr().err
    assert run("export", *words, "--push", "ants") == 2
    assert "give ORG/NAME" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("", 2), (None, 2), ("y", 1)])
@pytest.mark.full
def test_own_images_are_pushed_only_after_a_yes(words, photographs, monkeypatch, tmp_path, capsys, answer, code):
    def reply(question: str) -> str:
        assert f"{photographs}, with their EXIF data, to lab/ants" in question
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert run(*words, "--golden", photographs, "--push", "lab/ants") == code
    assert (tmp_path / "new").exists() == (answer == "y")
    message = f"failed: .*`hf upload lab/ants {tmp_path}/new`" if answer == "y" else "were not confirmed"
    assert re.search(message, capsys.readouterr().err)
