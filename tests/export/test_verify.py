"""`seresnext verify`: a change of each kind fails with its reason, and unchanged folders pass."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import replace, rewrite_manifest, run
from safetensors.torch import load_file, save

from seresnext.export.documents import EXPECTED, MANIFEST
from seresnext.models.timm_config import CONFIG


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


def test_any_changed_byte_fails_and_names_the_file(copy: Callable[[str], Path], capsys):
    folder = copy("hub")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 13  # card, configuration, weights, expected logits, manifest and eight images
    for path in files:
        before = path.read_bytes()
        place = len(before) // 2
        replace(path, before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        assert f"{path.relative_to(folder)} was changed" in fails(folder, capsys)
        replace(path, before)


def test_a_missing_file_fails(copy: Callable[[str], Path], capsys):
    folder = copy("hub")
    (folder / "golden" / "3.jpg").unlink()
    assert "golden/3.jpg is missing" in fails(folder, capsys)


def in_pretrained(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["pretrained_cfg"].update(values)


OTHER_PIXELS = "the pixels of 8 images differ after decode, resize and crop"
OTHER_WEIGHTS = "the weights, or mean and std of config.json, differ"
OUTSIDE = {"images": {"../config.json": {"pixels": "0" * 64, "logits": [0.0] * 5}}}
ONE_LOGIT = {"images": {"0.jpg": {"pixels": "0" * 64, "logits": [0.0]}}}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (CONFIG, in_pretrained(interpolation="bilinear"), OTHER_PIXELS),
        pytest.param(CONFIG, in_pretrained(crop_pct=0.85), OTHER_PIXELS, marks=pytest.mark.full),
        pytest.param(CONFIG, in_pretrained(input_size=[3, 60, 60]), OTHER_PIXELS, marks=pytest.mark.full),
        (CONFIG, in_pretrained(mean=[0.5, 0.5, 0.5]), OTHER_WEIGHTS),
        (
            CONFIG,
            lambda config: config["label_names"].reverse(),
            "class 0 is eel in config.json and ant in golden/expected.json",
        ),
        (CONFIG, lambda config: config.update(architecture="resnet50"), "none of"),
        (CONFIG, lambda config: config.update(num_classes=6), "5 label_names for 6 classes"),
        (MANIFEST, lambda manifest: manifest.update(kind="tflite"), "unknown kind"),
        (MANIFEST, lambda manifest: manifest.update(format=2), "format"),
        (EXPECTED, lambda expected: expected.update(images={}), "images"),
        (EXPECTED, lambda expected: expected.update(OUTSIDE), "no digest"),
        (EXPECTED, lambda expected: expected.update(ONE_LOGIT), "one logit for each class"),
    ],
)
def test_another_document_fails_with_the_reason(copy: Callable[[str], Path], capsys, name: str, change, reason: str):
    folder = copy("folded")
    edit(folder / name, change)
    rewrite_manifest(folder)
    assert reason in fails(folder, capsys)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("hub", lambda own, oracles: oracles["model"].state_dict(), OTHER_WEIGHTS),
        ("folded", lambda own, oracles: {name: own[name] * torch.nan for name in own}, "deviate by inf"),
        ("folded", lambda own, oracles: oracles["model"].state_dict(), "is no folded legacy_seresnext26_32x4d"),
    ],
)
def test_other_weights_fail_with_the_reason(copy: Callable[[str], Path], capsys, oracles, kind: str, change, reason):
    path = copy(kind) / "model.safetensors"
    replace(path, save(change(load_file(path), oracles)))
    rewrite_manifest(path.parent)
    assert reason in fails(path.parent, capsys)


@pytest.mark.full
def test_another_number_of_classes_fails_before_a_model_is_built(copy: Callable[[str], Path], capsys):
    folder = copy("weights")
    names = [str(number) for number in range(100_000)]
    image = {"pixels": "0" * 64, "logits": [0.0] * len(names)}
    edit(folder / CONFIG, lambda config: config.update(num_classes=len(names), label_names=names))
    edit(folder / EXPECTED, lambda expected: expected.update(classes=names, images={"0.jpg": image}))
    rewrite_manifest(folder)
    assert "with 5 classes, and config.json names a legacy_seresnext26_32x4d with 100000" in fails(folder, capsys)


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
