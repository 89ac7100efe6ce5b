"""A validation and its options: the numbers are those of timm's transforms and a plain loop."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm.data
import torch
from bad_checkpoints import metadata_values, model_weights, write_checkpoint
from PIL import Image
from safetensors.torch import save_file

from seresnext.cli import main
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.evaluation import evaluate
from seresnext.evaluation.table import read_table
from seresnext.models import create_model, load_pretrained
from seresnext.process.signals import StopRequest

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def images(tiny_image_folder: Callable[..., Path]) -> Path:
    return tiny_image_folder(val_per_class=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    weights = model_weights(3)
    weights["model.last_linear.weight"] *= 30  # Logits that differ by more than rounding.
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    return write_checkpoint(path, weights, metadata_values(images))


def run(*words: object) -> int:
    return main(["validate", *map(str, words)], StopRequest())


def logits_by_timm(checkpoint: Path, images: Path, size: int, crop: float, filter: str, flip: bool) -> torch.Tensor:
    """Return the logits of all images, one by one, with timm's transform."""
    model, _ = load_pretrained(checkpoint)
    transform = timm.data.create_transform((3, size, size), crop_pct=crop, interpolation=filter, mean=MEAN, std=STD)
    found = []
    for path in sorted((images / "val").rglob("*.jpg")):
        image = transform(Image.open(path).convert("RGB"))[None]
        with torch.inference_mode():
            found.append((model(image) + model(image.flip(3))) / 2 if flip else model(image))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (32, 0.875, "bicubic", False)),
        (
            ["--image-size", "48", "--crop-pct", "1", "--interpolation", "bilinear", "--flip"],
            (48, 1.0, "bilinear", True),
        ),
        (["--batch-size", "2", "--workers", "1"], (32, 0.875, "bicubic", False)),
    ],
)
def test_options_give_the_numbers_of_timm(checkpoint, images, tmp_path, words, expected) -> None:
    assert run("--checkpoint", checkpoint, "--table", tmp_path / "t.csv", "--json", tmp_path / "r.json", *words) == 0
    table, logits = read_table(tmp_path / "t.csv"), logits_by_timm(checkpoint, images, *expected)
    values, places = logits.double().softmax(1).sort(descending=True)
    for n in range(3):
        assert table[f"probability_{n + 1}"] == pytest.approx(values[:, n].tolist(), abs=1e-5)
        assert [int(name[-1]) for name in table[f"prediction_{n + 1}"]] == places[:, n].tolist()
    labels = torch.arange(3).repeat_interleave(3)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), labels).item(), abs=1e-5)
    assert report["preprocessing"]["image_size"] == expected[0]
    assert [row["support"] for row in report["per_class"]] == [3, 3, 3]


def test_batchnorm_is_folded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Mock(wraps=evaluate)
    monkeypatch.setattr("seresnext.run.validate.evaluate", seen)
    assert run("--checkpoint", checkpoint) == 0
    kinds = {type(module) for module in seen.call_args.args[0].modules()}
    assert torch.nn.Conv2d in kinds
    assert torch.nn.BatchNorm2d not in kinds


@pytest.mark.full
def test_several_checkpoints_make_a_list(checkpoint: Path, tmp_path: Path) -> None:
    assert run("--checkpoint", checkpoint, checkpoint, "--json", tmp_path / "r.json") == 0
    first, second = json.loads((tmp_path / "r.json").read_text())
    assert {**first, "images_per_second": 0} == {**second, "images_per_second": 0}


def bare_weights(path: Path, num_classes: int = 1000) -> torch.Tensor:
    """Write a file without class names, whose logits do not depend on the image. Return the logits."""
    state = create_model("seresnext26", num_classes).state_dict()
    state["last_linear.weight"].zero_()
    bias = state["last_linear.bias"] = torch.randn(num_classes, generator=torch.Generator().manual_seed(0))
    save_file(state, path, {"format": "pt"})
    return bias


def folders(root: Path, names: Iterable[str], image: bytes, file: str = "{}.jpg") -> Path:
    """Write `val` with an image for each name. A name that comes twice is a class with two images."""
    for number, name in enumerate(names):
        (root / "val" / name).mkdir(parents=True, exist_ok=True)
        (root / "val" / name / file.format(number + 1)).write_bytes(image)
    return root


def report_of(checkpoint: Path, data: Path, *words: object) -> dict[str, Any]:
    """Return the JSON file of a validation."""
    more = ["--image-size", 32, "--workers", 0, "--json", data / "r.json", *words]
    assert run("--checkpoint", checkpoint, "--data", data, *more) == 0
    return json.loads((data / "r.json").read_text())


@pytest.fixture
def jpeg(images: Path) -> bytes:
    return next(images.rglob("*.jpg")).read_bytes()


@pytest.mark.parametrize("by_number", [False, pytest.param(True, marks=pytest.mark.full)])
def test_some_of_imagenets_classes_count_alone(tmp_path: Path, jpeg: bytes, by_number: bool) -> None:
    """The oracle leaves the other columns out of the softmax by hand."""
    bias, chosen = bare_weights(tmp_path / "w.safetensors"), [3, 500, 998]
    names = [str(place) if by_number else imagenet_classes()[place].wordnet_id for place in chosen]
    data = folders(tmp_path / "data", names, jpeg)
    report = report_of(tmp_path / "w.safetensors", data, "--table", tmp_path / "t.csv")
    assert report["loss"] == pytest.approx(-bias[chosen].log_softmax(0).mean().item(), abs=1e-5)
    assert report["top1"] == pytest.approx(100 / 3)
    best = imagenet_classes()[chosen[int(bias[chosen].argmax())]].wordnet_id
    assert {*read_table(tmp_path / "t.csv")["prediction_1"]} == {best}


@pytest.mark.full
def test_reassessed_labels(tmp_path: Path, jpeg: bytes) -> None:
    """Of three images, the set of the first has the prediction, of the second has not, and of the third is empty."""
    best = int(bare_weights(tmp_path / "w.safetensors").argmax())
    names = [row.wordnet_id for row in imagenet_classes()]
    data = folders(tmp_path / "data", names, jpeg, "ILSVRC2012_val_{:08d}.JPEG")
    sets: list[list[int]] = [[best, 7], [best - 1], *([] for _ in range(998))]
    (tmp_path / "real.json").write_text(json.dumps(sets))
    words = ["--real-labels", tmp_path / "real.json"]
    real = report_of(tmp_path / "w.safetensors", data, *words)["real_labels"]
    assert (real["top1"], real["num_images"]) == (50, 2)
    (tmp_path / "real.json").write_text("[[1], 2]")
    assert run("--checkpoint", tmp_path / "w.safetensors", "--data", data, *words) == 3


@pytest.mark.parametrize("names", ["abc", "abcdef"])
def test_more_than_five_classes_have_a_top_5(tmp_path, jpeg, capsys, names: str) -> None:
    bare_weights(tmp_path / "w.safetensors", len(names))
    report = report_of(tmp_path / "w.safetensors", folders(tmp_path / "data", names, jpeg))
    out = capsys.readouterr().out
    assert ("top-5 83.33 %" in out, "top-5" in out) == (len(names) > 5, len(names) > 5)
    assert report["top5"] == pytest.approx(500 / 6 if len(names) > 5 else 100)
    assert "text order" in out


def test_a_map_of_classes(checkpoint: Path, tmp_path: Path, jpeg: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders(tmp_path / "data", ["x", "y"], jpeg)
    words: list[Any] = ["--checkpoint", checkpoint, "--data", data]
    assert run(*words) == 3  # Other classes than in training.
    assert "--class-map" in capsys.readouterr().err
    (tmp_path / "map").write_text("x,class_2\ny,0\n")
    assert run(*words, "--class-map", tmp_path / "map", "--table", tmp_path / "t.csv") == 0
    assert read_table(tmp_path / "t.csv")["label"] == ["class_2", "class_0"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--table", "t.xlsx"], 2, "does not end in .parquet or .csv"),
        (["--table", "t.csv", "--checkpoint", "."], 2, "--table is for one checkpoint"),
        (["--table", f"{__file__}/t.csv"], 2, "cannot be written; choose another file with --table"),
        (["--json", "."], 2, "cannot be written; choose another file with --json"),
        (["--image-size", "15"], 2, "from 16 to 4096"),
        (["--batch-size", "0"], 2, "at least 1"),
        (["--workers", "257"], 2, "from 0 to 256"),
        (["--crop-pct", "1.5"], 2, "from 0.1 to 1"),
        (["--classes", "a,b"], 2, "names 2 classes, and the model has 3"),
        (["--real-labels", "none.json"], 2, "--real-labels needs a model of ImageNet's"),
    ],
)
def test_wrong_options(checkpoint: Path, capsys: pytest.CaptureFixture[str], words, code, message) -> None:
    assert run("--checkpoint", checkpoint, *words) == code
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_before_the_work(checkpoint: Path, capsys, without) -> None:
    without("pyarrow")
    assert run("--checkpoint", checkpoint, "--table", "t.parquet") == 2
    output = capsys.readouterr()
    assert 'pip install "seresnext[report]"' in output.err
    assert output.out == ""
