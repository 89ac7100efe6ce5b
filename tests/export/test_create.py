"""`seresnext export`: golden images, evaluation, and mistakes that must leave nothing."""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import run
from PIL import Image, ImageOps
from safetensors.torch import save_file

from seresnext.classifier import load
from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.pillow import Decoding
from seresnext.distributed import World
from seresnext.export import kinds
from seresnext.export.documents import EXPECTED, MANIFEST
from seresnext.export.run_onnx import load_image
from seresnext.models import LoadedWeights
from seresnext.models.timm_config import CONFIG
from seresnext.run.validate import read_subject

EVALUATION = {"top1": 80.0, "top5": 99.0, "loss": 0.5, "num_images": 10, "images_per_second": 3.0, "weights": "ema"}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """`refused(words, code, reason)`: a command fails with a reason, and leaves no folder."""

    def check(words: list[object], code: int, reason: str) -> None:
        before = sorted(tmp_path.iterdir())
        assert run(*words) == code
        assert reason in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before

    return check


def test_own_images_travel_under_numbers(words, photographs: Path, tmp_path: Path):
    assert run(*words, "--golden", photographs) == 0
    folder = tmp_path / "new"
    assert (folder / "golden" / "0.png").read_bytes() == (photographs / "ants.png").read_bytes()
    assert (folder / "golden" / "1.jpg").read_bytes() == (photographs / "zoo secret.JPG").read_bytes()
    assert list(json.loads((folder / EXPECTED).read_text())["images"]) == ["0.png", "1.jpg"]
    assert "secret" not in (folder / MANIFEST).read_text()
    assert json.loads((folder / CONFIG).read_text()).keys().isdisjoint(CASES)  # Earlier versions refuse these keys.
    assert run("verify", folder) == 0


def test_a_folder_that_cannot_be_written_is_refused(words, refused, tmp_path: Path):
    (tmp_path / "new").mkdir()
    refused(words, 2, "give the name of a new folder")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    refused([*words[:-1], tmp_path / "file" / "new"], 1, "cannot be written")


def test_too_many_and_bad_images_are_refused(words, refused, photographs: Path, tmp_path: Path):
    refused([*words, "--golden", tmp_path / "nothing"], 3, "No such file")
    (photographs / "b.txt").write_text("no image")
    refused([*words, "--golden", photographs], 3, f"{photographs / 'b.txt'} is a text")
    for number in range(8):
        (photographs / f"{number}.png").write_bytes(b"")
    refused([*words, "--golden", photographs], 2, "give 1 to 8 images")


def test_an_evaluation_gives_accuracy_and_temperature(words, tmp_path: Path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps({**EVALUATION, "calibration": {"temperature": 1.5, "ece": 0.1}}))
    assert run(*words, "--evaluation", file) == 0
    evaluation = json.loads((tmp_path / "new" / MANIFEST).read_text())["evaluation"]
    assert evaluation == {"top1": 80.0, "top5": 99.0, "loss": 0.5, "num_images": 10.0, "temperature": 1.5}
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["temperature"] == 1.5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (EVALUATION | {"weights": "model"}, "measured with weights model"),
        (EVALUATION | {"model": "seresnext50"}, "measured with model legacy_seresnext50_32x4d"),
        (EVALUATION | {"preprocessing": {"image_size": 224}}, "measured with image_size 224"),
        (EVALUATION | {"flip": True}, "measured with flip True"),
        (EVALUATION | {"num_classes": 7}, "measured with num_classes 7"),
        (EVALUATION | {"top1": 101.0}, "top1"),
        (EVALUATION | {"loss": None}, "loss"),
        ([EVALUATION], "not the result of one checkpoint"),
        (None, "No such file"),
    ],
)
def test_the_evaluation_of_another_model_is_refused(words, refused, tmp_path: Path, content: Any, reason: str):
    file = tmp_path / "result.json"
    if content:
        file.write_text(json.dumps(content))
    refused([*words, "--evaluation", file], 3, reason)


@pytest.mark.full
def test_an_export_that_fails_its_check_leaves_nothing(words, refused, monkeypatch):
    kind = kinds.KINDS["weights"]

    def damage(model: torch.nn.Module, path: Path) -> None:
        with torch.no_grad():
            model.last_linear.bias[0] += 1
            kind.write(model, path)
            model.last_linear.bias[0] -= 1

    monkeypatch.setitem(kinds.KINDS, "weights", kinds.Kind("", kind.file, damage, kind.open))
    refused(words, 1, "its check failed")


def test_a_full_disk_leaves_nothing(words, refused, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(words, 1, "No space left on device")


def test_weights_with_infinite_logits_are_refused(words, refused, oracles, tmp_path: Path):
    weights = {name: tensor * 1e38 for name, tensor in oracles["model"].state_dict().items() if tensor.ndim == 2}
    save_file(oracles["model"].state_dict() | weights, tmp_path / "large.safetensors")
    refused([*words[:2], tmp_path / "large.safetensors", *words[3:]], 4, "not finite")


def test_names_of_classes_that_are_no_text_are_refused(words, refused, monkeypatch):
    monkeypatch.setattr(LoadedWeights, "classes", property(lambda self: ["a\udcff", "b", "c", "d", "e"]))
    refused(words, 4, "cannot be exported")


CASES = {
    "exif_rotation": (True, "1.jpg", ("Turn the image", "PIL.ImageOps.exif_transpose")),
    "background": ([9, 200, 30], "7.png", ("colour 9, 200, 30", "does not fill")),
}


def test_an_export_turns_and_fills_as_the_run_did(write_checkpoint, tmp_path: Path):
    """One golden image is turned and one is transparent. Pillow's own functions are the oracle."""
    folder = tmp_path / "new"
    settings = ("data.exif_rotation=true", "data.background=[9, 200, 30]")
    assert run("export", "--checkpoint", write_checkpoint(*settings), "--to", "hub", "--output", folder) == 0
    config = json.loads((folder / CONFIG).read_text())
    expected = json.loads((folder / EXPECTED).read_text())["images"]
    # The program of an ONNX folder has the same pixels, and so have the weights opened again.
    for golden, facts in expected.items():
        found = load_image(folder / "golden" / golden, config)
        assert hashlib.sha256(found.tobytes()).hexdigest() == facts["pixels"]
    classifier = load(folder)
    assert (classifier.decoding.exif_rotation, classifier.decoding.background) == (True, (9, 200, 30))
    _, recipe = read_subject(folder, None, World())  # of `seresnext validate`
    assert Decoding.of(recipe.data) == classifier.decoding
    for key, (value, name, words) in CASES.items():
        assert config[key] == value
        assert all(each in (folder / "README.md").read_text() for each in words)
        image = ImageOps.exif_transpose(Image.open(folder / "golden" / name))
        oracle = Image.new("RGB", image.size, (9, 200, 30))
        oracle.paste(image, mask=image if image.mode == "RGBA" else None)
        pixels = ResizeCenterCrop(64, 0.8, "bicubic")(oracle).numpy()
        assert hashlib.sha256(pixels.data).hexdigest() == expected[name]["pixels"]
        for image in (folder / "golden" / name, Image.open(folder / "golden" / name)):
            inputs = classifier.prepare(image)
            torch.testing.assert_close(inputs[0], classifier.preprocessing.normalise(torch.from_numpy(pixels)))
        without = {other: config[other] for other in config if other != key}  # The control.
        assert (load_image(folder / "golden" / name, without) != pixels).any()
