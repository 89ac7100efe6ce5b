"""`seresnext verify`: a change of each kind fails with its reason, and unchanged folders pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import make_oracle, replace, rewrite_manifest, run
from safetensors.torch import save_file

from seresnext.export.documents import EXPECTED, MANIFEST
from seresnext.models.timm_config import CONFIG

FILES = ["README.md", CONFIG, "model.safetensors", EXPECTED, MANIFEST, *(f"golden/{number}.jpg" for number in range(5)),
         *(f"golden/{number}.png" for number in range(5, 8))]  # fmt: skip


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    values = json.loads(file.read_text())
    change(values)
    replace(file, json.dumps(values).encode())


def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of a check that must fail."""
    capsys.readouterr()
    assert run("verify", folder) == 4
    return capsys.readouterr().err


@pytest.mark.full
def test_an_unchanged_folder_passes_also_with_rewritten_digests(copy: Callable[[str], Path], capsys):
    folder = copy("hub")
    assert run("verify", folder) == 0
    assert "8 golden images" in capsys.readouterr().out
    rewrite_manifest(folder)
    assert run("verify", folder) == 0


def test_the_list_of_files_is_complete(export: Callable[[str], Path]):
    folder = export("hub")
    assert sorted(FILES) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_fails_and_names_the_file(copy: Callable[[str], Path], capsys, name: str):
    folder = copy("hub")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    replace(folder / name, bytes(content))
    assert f"{name} was changed" in fails(folder, capsys)


def test_a_missing_file_fails(copy: Callable[[str], Path], capsys):
    folder = copy("hub")
    (folder / "golden" / "3.jpg").unlink()
    assert "golden/3.jpg is missing" in fails(folder, capsys)


@pytest.mark.parametrize(
    ("key", "value"), [("interpolation", "bilinear"), ("crop_pct", 0.85), ("input_size", [3, 60, 60])]
)
@pytest.mark.full
def test_another_resize_fails_with_the_reason(copy: Callable[[str], Path], capsys, key: str, value: object):
    folder = copy("folded")
    edit(folder / CONFIG, lambda config: config["pretrained_cfg"].update({key: value}))
    rewrite_manifest(folder)
    message = fails(folder, capsys)
    assert "the pixels of 8 images differ after decode, resize and crop" in message


def test_another_normalisation_fails_with_the_reason(copy: Callable[[str], Path], capsys):
    folder = copy("folded")
    edit(folder / CONFIG, lambda config: config["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]))
    rewrite_manifest(folder)
    assert "the weights, or mean and std of config.json, differ" in fails(folder, capsys)


def test_swapped_classes_fail_with_the_reason(copy: Callable[[str], Path], capsys):
    folder = copy("hub")
    edit(folder / CONFIG, lambda config: config["label_names"].reverse())
    rewrite_manifest(folder)
    assert "class 0 is eel in config.json and ant in golden/expected.json" in fails(folder, capsys)


def test_swapped_weights_fail_with_the_reason(copy: Callable[[str], Path], capsys, oracles):
    folder = copy("hub")
    (folder / "model.safetensors").unlink()
    save_file(oracles["model"].state_dict(), folder / "model.safetensors", {"format": "pt"})
    rewrite_manifest(folder)
    assert "the weights, or mean and std of config.json, differ" in fails(folder, capsys)


def test_weights_that_are_not_finite_fail(copy: Callable[[str], Path], capsys):
    folder = copy("folded")
    tensors = {name: torch.full_like(value, torch.nan) for name, value in _tensors(folder).items()}
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    rewrite_manifest(folder)
    assert "deviate by inf" in fails(folder, capsys)


@pytest.mark.full
def test_another_number_of_classes_fails_before_a_model_is_built(copy: Callable[[str], Path], capsys):
    folder = copy("weights")
    names = [str(number) for number in range(100_000)]

    def enlarge(config: dict[str, Any]) -> None:
        config.update(num_classes=len(names), label_names=names)
        config["pretrained_cfg"]["num_classes"] = len(names)

    def relabel(expected: dict[str, Any]) -> None:
        expected["classes"] = names
        expected["images"] = {"0.jpg": {"pixels": "0" * 64, "logits": [0.0] * len(names)}}

    edit(folder / CONFIG, enlarge)
    edit(folder / EXPECTED, relabel)
    rewrite_manifest(folder)
    assert "with 5 classes, and config.json names a legacy_seresnext26_32x4d with 100000" in fails(folder, capsys)


def test_weights_of_another_model_fail(copy: Callable[[str], Path], capsys):
    folder = copy("folded")
    (folder / "model.safetensors").unlink()
    save_file(make_oracle("legacy_seresnext26_32x4d", 0).state_dict(), folder / "model.safetensors")
    rewrite_manifest(folder)
    assert "is no folded legacy_seresnext26_32x4d" in fails(folder, capsys)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (MANIFEST, {"kind": "tflite"}, "unknown kind"),
        (MANIFEST, {"format": 2}, "format"),
        (CONFIG, {"architecture": "resnet50"}, "none of"),
        (CONFIG, {"num_classes": 6}, "5 label_names for 6 classes"),
        (EXPECTED, {"images": {}}, "images"),
        (EXPECTED, {"images": {"../config.json": {"pixels": "0" * 64, "logits": [0.0] * 5}}}, "no digest"),
        (EXPECTED, {"images": {"0.jpg": {"pixels": "0" * 64, "logits": [0.0]}}}, "one logit for each class"),
    ],
)
def test_files_of_strangers_are_refused(copy: Callable[[str], Path], capsys, name: str, change: dict, reason: str):
    folder = copy("weights")
    edit(folder / name, lambda values: values.update(change))
    rewrite_manifest(folder)
    assert reason in fails(folder, capsys)


@pytest.mark.parametrize("name", ["../outside", "golden/../../outside", "/etc/hostname", "a" * 5000, "golden", "a\0b"])
def test_a_manifest_reads_no_file_outside_of_the_folder(copy: Callable[[str], Path], capsys, tmp_path: Path, name: str):
    folder = copy("weights")
    (tmp_path / "outside").write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name], manifest["digest"] = digest, "0" * 64
    blank = json.dumps(manifest, indent=1)
    replace(folder / MANIFEST, blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest()).encode())
    assert "is missing" in fails(folder, capsys)


def test_a_model_without_digest_is_refused(copy: Callable[[str], Path], capsys):
    folder = copy("weights")
    (folder / "model.safetensors").rename(folder / "other")
    rewrite_manifest(folder)
    (folder / "other").rename(folder / "model.safetensors")
    (folder / "other").touch()
    assert "model.safetensors is not in manifest.json" in fails(folder, capsys)


def test_a_folder_without_manifest_is_refused(tmp_path: Path, capsys):
    assert "manifest.json cannot be read: No such file or directory; give another path" in fails(tmp_path, capsys)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
