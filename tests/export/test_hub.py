"""The export for timm and the Hub, loaded by timm and read by huggingface_hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from exports import CLASSES, make_oracle, run
from hub_server import serve_hub
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from seresnext.export.card import ModelFacts, write_card
from seresnext.models import Preprocessing

LOAD = """
import sys, timm, torch
model = timm.create_model("hf-hub:lab/ants", pretrained=True).eval()
with torch.inference_mode():
    torch.save(model(torch.ones(1, 3, 64, 64)), sys.argv[1])
"""


def same_logits(model: torch.nn.Module, oracle: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), oracle(images))


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_timm_loads_the_folder_and_the_file(checkpoint: Path, oracles, tmp_path: Path, kind: str):
    folder = tmp_path / "hub"
    words = ["--checkpoint", checkpoint, "--weights", kind, "--output", folder]
    assert run("export", "--to", "timm", *words) == 0
    same_logits(timm.create_model(f"local-dir:{folder}", pretrained=True), oracles[kind])
    path = folder / "model.safetensors"
    same_logits(
        timm.create_model("legacy_seresnext26_32x4d", num_classes=len(CLASSES), checkpoint_path=path), oracles[kind]
    )


def test_timm_has_the_preprocessing_and_the_classes(export: Callable[..., Path]):
    folder = export("hub")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == CLASSES
    # The golden logits come from timm's own transform, too.
    transform = create_transform(**resolve_data_config(model=model))
    expected = json.loads((folder / "golden" / "expected.json").read_text())
    for name, image in expected["images"].items():
        with Image.open(folder / "golden" / name) as opened, torch.inference_mode():
            logits = model(transform(opened.convert("RGB"))[None])[0]
        np.testing.assert_allclose(logits, image["logits"], atol=expected["tolerance"])


def test_timm_replaces_the_classifier_for_finetuning(export: Callable[..., Path]):
    model = timm.create_model(f"local-dir:{export('hub')}", pretrained=True, num_classes=3)
    assert model.get_classifier().out_features == 3


@pytest.mark.full
def test_a_padded_stem_has_the_names_of_timms_newer_model(tmp_path: Path):
    oracle = make_oracle("seresnext50_32x4d", 0)
    save_file(oracle.state_dict(), tmp_path / "given.safetensors")
    folder = tmp_path / "hub"
    assert run("export", "--checkpoint", tmp_path / "given.safetensors", "--to", "hub", "--output", folder) == 0
    same_logits(timm.create_model(f"local-dir:{folder}", pretrained=True), oracle)
    path = folder / "model.safetensors"
    same_logits(timm.create_model("seresnext50_32x4d", num_classes=len(CLASSES), checkpoint_path=path), oracle)


@pytest.mark.full
def test_a_pushed_folder_loads_from_the_hub(checkpoint: Path, oracles, run_command, tmp_path: Path):
    """The stand-in gets every file of the folder. timm loads the model from the stand-in by `hf-hub:`."""
    folder, result = tmp_path / "hub", tmp_path / "logits.pt"
    with serve_hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        words = ["--checkpoint", checkpoint, "--to", "hub", "--output", folder, "--push", "lab/ants"]
        done = run_command([sys.executable, "-m", "seresnext", "export", *words], env=environment)
        assert done.returncode == 0, done.output
        assert f"pushed to {hub.address}/lab/ants" in done.stdout
        assert hub.tokens == {"Bearer hf_test"}
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert hub.files["lab/ants"] == files
        loaded = run_command([sys.executable, "-c", LOAD, result], env=environment)
        assert loaded.returncode == 0, loaded.output
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(result), oracles["ema"](torch.ones(1, 3, 64, 64)))


def test_an_upload_that_fails_keeps_the_folder(checkpoint: Path, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # Nobody listens there.
    words = ["--checkpoint", checkpoint, "--to", "weights", "--output", tmp_path / "new", "--push", "lab/ants"]
    assert run("export", *words) == 1
    assert f"hf upload lab/ants {tmp_path / 'new'}" in capsys.readouterr().err
    assert run("verify", tmp_path / "new") == 0


def facts(evaluation: dict[str, float] | None) -> ModelFacts:
    how = Preprocessing(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    classes = ["<script>alert(1)</script>", "a|b", "[x](http://y)", *map(str, range(30))]
    return ModelFacts(
        "ants: 1", "legacy_seresnext26_32x4d", classes, 5, how, "ema", "0" * 64, {"Learning rate": 0.6}, evaluation
    )


def test_the_hub_reads_the_card():
    evaluation = {"top1": 98.5, "top5": 99.5, "loss": 0.1, "num_images": 360.0, "temperature": 1.25}
    card = ModelCard(write_card(facts(evaluation)))
    results = card.data.eval_results or []
    assert {result.metric_name: result.metric_value for result in results} == {
        "Top 1 Accuracy": 98.5,
        "Top 5 Accuracy": 99.5,
    }
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert "| Temperature | 1.2500 |" in card.text
    assert "| Learning rate | 0.6 |" in card.text


def test_a_card_without_evaluation_has_no_accuracy():
    card = ModelCard(write_card(facts(None)))
    assert not card.data.eval_results
    assert "Not measured" in card.text
    assert "%" not in card.text
    assert "Temperature" not in card.text


def test_names_of_classes_are_text_in_a_card():
    text = write_card(facts(None))
    assert "<script" not in text
    assert "a\\|b" in text
    assert "[x](" not in text
    assert "..." in text


def test_the_token_of_this_machine_is_needed(checkpoint: Path, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    words = ["--checkpoint", checkpoint, "--to", "weights", "--output", tmp_path / "new"]
    assert run("export", *words, "--push", "lab/ants") == 2
    assert "hf auth login" in capsys.readouterr().err
    assert run("export", *words, "--push", "ants") == 2
    assert "give ORG/NAME" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
