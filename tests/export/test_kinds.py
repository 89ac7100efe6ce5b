"""Each kind of export compared with timm's network, also at sizes that the export did not see."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import run
from safetensors import safe_open

from seresnext.arguments import Parser
from seresnext.commands import tools as command
from seresnext.export.documents import MANIFEST, read_document
from seresnext.export.kinds import KINDS
from seresnext.models.timm_config import CONFIG, TimmConfig

SHAPES = [(count, *size) for size in ((64, 64), (193, 257), (224, 224)) for count in (1, 5)] + [(2, 32, 32)]


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_timms_at_any_size(export: Callable[..., Path], oracles: dict[str, torch.nn.Module], kind: str):
    folder = export(kind)
    network = KINDS[kind].open(folder / KINDS[kind].file, read_document(TimmConfig, folder / CONFIG))
    for count, height, width in SHAPES:
        images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            found, wanted = network(images).numpy(), oracles["ema"](images).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_the_command_offers_all_kinds():
    parser = Parser()
    command.export_arguments(parser)
    (choices,) = [action.choices for action in parser._actions if action.dest == "to"]
    assert set(choices or ()) == {*KINDS, "timm"}


def test_weights_are_half_a_checkpoint_with_average(export: Callable[..., Path], checkpoint: Path):
    model = export("weights") / "model.safetensors"
    assert model.stat().st_size < 0.51 * (checkpoint / "checkpoints" / "best.safetensors").stat().st_size
    with safe_open(model, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert model.stat().st_mode & 0o777 == 0o644


def test_the_manifest_names_the_source(export: Callable[..., Path]):
    manifest = json.loads((export("folded") / MANIFEST).read_text())
    assert manifest["kind"] == "folded"
    assert manifest["source"]["weights"] == "ema"
    assert manifest["source"]["step"] == 7
    assert {"torch", "seresnext"} <= manifest["versions"].keys()
    assert "model.safetensors" in manifest["files"]


def test_a_missing_package_is_named_before_the_work(monkeypatch, checkpoint: Path, tmp_path: Path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert run("export", "--checkpoint", checkpoint, "--to", "onnx", "--output", tmp_path / "new") == 2
    assert "seresnext[export]" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
