"""Validations within the test's process: the file, the labels and the printed lines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bad_checkpoints import metadata_values, model_weights, write_checkpoint
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from seresnext.distributed import World
from seresnext.errors import CheckpointError
from seresnext.models import Preprocessing, SENet, create_model
from seresnext.run import validate as module
from seresnext.run.validate import ValidationSettings, validate


@pytest.fixture
def by_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every model ignore the image: the logits are the bias of the classifier. Images are small."""

    def forward(self: SENet, x: Tensor) -> Tensor:
        return self.last_linear(x.new_zeros(len(x), 2048))

    monkeypatch.setattr(SENet, "forward", forward)
    small = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr("seresnext.models.pretrained.published_preprocessing", lambda name: small)
    monkeypatch.setattr(module, "_PUBLISHED_WORKERS", 0)


def bare_file(path: Path, num_classes: int) -> Tensor:
    """Write weights without class names. Return the logits of any image; no two logits are equal."""
    torch.manual_seed(0)
    state = create_model("seresnext26", num_classes).state_dict()
    state["last_linear.bias"] = torch.randperm(num_classes) / 100.0
    save_file(state, path, {"format": "pt"})
    return state["last_linear.bias"]


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


PNG = png()


def image_folder(root: Path, names: list[str], counts: list[int]) -> Path:
    """Write `val` with a number of images for each class. The first class has label 0."""
    for name, count in zip(names, counts, strict=True):
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(PNG)
    return root


def measured(file: Path, root: Path | None = None, **settings: Any) -> dict[str, Any]:
    """Return the JSON file of a validation."""
    settings["data"] = str(root) if root else None
    return json.loads(json.dumps(validate(file, World(), ValidationSettings(**settings)).to_json()))


@pytest.mark.usefixtures("by_bias")
@pytest.mark.parametrize("width", [1, 4])
def test_numbered_folders_give_the_labels_of_a_file_without_class_names(
    tmp_path: Path, capsys: Any, width: int
) -> None:
    """`7` and `0007` give the same result, in the order of numbers. The oracle is the sum over the labels."""
    logits = bare_file(tmp_path / "w.safetensors", 12)
    counts = [3 if label == 7 or label == int(logits.argmax()) else 1 for label in range(12)]
    labels = torch.arange(12).repeat_interleave(torch.tensor(counts))
    loss = F.cross_entropy(logits.double().expand(len(labels), -1), labels).item()
    folder = image_folder(tmp_path / "data", [f"{n:0{width}d}" for n in range(12)], counts)
    report = measured(tmp_path / "w.safetensors", folder)
    assert report["num_images"] == len(labels)
    assert report["top1"] == 100 * 3 / len(labels)
    assert report["loss"] == pytest.approx(loss, rel=1e-12)
    assert "class names" in capsys.readouterr().out


@pytest.fixture
def checkpoint(tiny_image_folder: Callable[..., Path]) -> Callable[..., Path]:
    """`checkpoint(path, *names)`: a checkpoint of 3 classes of the tiny images, or of these names."""
    values = metadata_values(tiny_image_folder(val_per_class=1))

    def write(path: Path, *names: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if names:
            values["dataset"]["classes"] = list(names)
        return write_checkpoint(path, model_weights(3), values)

    return write


@pytest.mark.usefixtures("by_bias")
def test_a_checkpoint_has_its_class_names(tmp_path: Path, capsys: Any, checkpoint: Callable[..., Path]) -> None:
    """A run on numbered folders has labels in text order, and the checkpoint names the classes."""
    names = ["10", "2", "9"]
    file = checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors", *names)
    report = measured(file, image_folder(tmp_path / "data", names, [1, 2, 3]))
    assert report["num_images"] == 6
    assert "class names" not in capsys.readouterr().out


def test_a_run_folder_is_its_best(tmp_path: Path, capsys: Any, checkpoint: Callable[..., Path]) -> None:
    last = checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    report = measured(tmp_path / "run")
    assert str(last) in capsys.readouterr().out
    assert report["checkpoint"] == str(last)
    best = checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")
    report = measured(tmp_path / "run")
    out = capsys.readouterr().out
    assert str(best) in out
    assert "top-5" not in out  # Three classes have no top-5.
    assert report["top5"] == 100


@pytest.mark.parametrize("name", ["seresnext-9", "seresnext-1"])
def test_the_format_of_a_checkpoint_is_refused_for_plain_weights(tmp_path: Path, name: str) -> None:
    save_file(model_weights(3), tmp_path / "w.safetensors", {"format": name})
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        validate(tmp_path / "w.safetensors", World(), ValidationSettings(data=str(tmp_path)))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("https://host/last.safetensors", "s3://bucket/run", "none", ".", "se_resnext50_32x4d-a260b3a4.pth"):
        with pytest.raises(CheckpointError) as caught:
            validate(Path(given), World(), ValidationSettings())
        assert given in str(caught.value)


@pytest.mark.usefixtures("by_bias")
def test_six_classes_have_a_top_5(tmp_path: Path, capsys: Any) -> None:
    bare_file(tmp_path / "w.safetensors", 6)
    measured(tmp_path / "w.safetensors", image_folder(tmp_path / "six", list("abcdef"), [1] * 6))
    out = capsys.readouterr().out
    assert "top-5 83.33 %" in out
    assert "text order" in out
