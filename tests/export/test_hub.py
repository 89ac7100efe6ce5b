"""The export for timm and the Hub, loaded by timm and read by huggingface_hub."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from exports import CLASSES, assert_same_logits, make_oracle, run
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_timm_loads_the_folder_and_the_file(checkpoint: Path, oracles, tmp_path: Path, kind: str):
    folder = tmp_path / "hub"
    words = ["--checkpoint", checkpoint, "--weights", kind, "--output", folder]
    assert run("export", "--to", "timm", *words) == 0
    assert_same_logits(timm.create_model(f"local-dir:{folder}", pretrained=True), oracles[kind])
    tuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert tuned.get_classifier().out_features == 3
    path = folder / "model.safetensors"
    assert_same_logits(
        timm.create_model("legacy_seresnext26_32x4d", num_classes=len(CLASSES), checkpoint_path=path), oracles[kind]
    )


@pytest.mark.full
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


@pytest.mark.full
def test_a_padded_stem_has_the_names_of_timms_newer_model(tmp_path: Path):
    oracle = make_oracle("seresnext50_32x4d", 0)
    save_file(oracle.state_dict(), tmp_path / "given.safetensors")
    folder = tmp_path / "hub"
    assert run("export", "--checkpoint", tmp_path / "given.safetensors", "--to", "hub", "--output", folder) == 0
    assert_same_logits(timm.create_model(f"local-dir:{folder}", pretrained=True), oracle)
    path = folder / "model.safetensors"
    assert_same_logits(timm.create_model("seresnext50_32x4d", num_classes=len(CLASSES), checkpoint_path=path), oracle)
