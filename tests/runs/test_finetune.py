"""The command `finetune`: photographs of classes become a model and a report."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from PIL import Image
from torch import Tensor

from seresnext import cli
from seresnext.commands.finetune import suited_settings
from seresnext.errors import DataError
from seresnext.models import SENet, locate
from seresnext.models.pretrained import ModelSizes
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import load_recipe
from seresnext.run.folder import RunFolder

SETTINGS = ["data.image_size=32", "data.workers=0", "model.name=seresnext26", "length=2ep", "runtime.precision=fp32"]
USUAL = load_recipe("finetune").recipe

Finetune = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """30 digits of three classes in a folder a class, with a WebP, a damaged photo and a text."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for name in "012":
        files = sorted((digits_folder / "train" / name).iterdir())[:30]
        (root / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, root / name)
    first = sorted((root / "0").iterdir())[0]
    Image.open(first).save(first.with_suffix(".webp"))
    first.write_bytes(first.read_bytes()[:60])
    (root / "0" / "notes.txt").write_text("a text")
    return root


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Finetune:
    """`finetune(photos, *options) -> (exit code, output, errors)` with four narrow blocks, in a folder without runs."""

    def narrow(name: str, *sizes: int, **options: float) -> SENet:
        return SENet((1, 1, 1, 1), *sizes, cardinality=1, **options)

    for module in ("models.registry", "models.pretrained", "run.validate"):
        monkeypatch.setattr(f"seresnext.{module}.create_model", narrow)
    monkeypatch.setattr("seresnext.models.pretrained.identify_model", identify)
    monkeypatch.setattr(locate, "download_file", Mock(side_effect=OSError("no network")))
    # A folder stays locked to the end of the process.
    monkeypatch.setattr(RunFolder, "open", lambda self: self.checkpoints.mkdir(parents=True, exist_ok=True))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)

    def run(root: Path, *options: str, settings: Sequence[str] = SETTINGS) -> tuple[int, str, str]:
        words = [word for setting in settings for word in ("--set", setting)]
        with StopRequest() as stop:
            code = cli.main(["finetune", str(root), "--device", "cpu", *words, *options], stop)
        return code, *capsys.readouterr()

    return run


def identify(tensors: Mapping[str, Tensor], *_: object) -> ModelSizes:
    return ModelSizes("legacy_seresnext26_32x4d", len(tensors["last_linear.bias"]), 3)


def test_from_photos_to_a_report(finetune: Finetune, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, output, errors = finetune(photos, "--set", "model.frozen=[layer0]", "--set", "model.frozen_until=1ep")
    assert code == 0, errors
    run = tmp_path / "runs" / "photos"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    attempts = [call.args[0] for call in locate.download_file.call_args_list]
    assert len(attempts) == len(set(attempts)) > 0  # Each takes up to 10 s.
    assert "WITHOUT PRETRAINED WEIGHTS: the weights of seresnext26 are not on this machine" in output
    expected = {"weights": None, "reset_head": False, "frozen": [], "frozen_until": None, "num_classes": 3}
    assert recipe["model"] | expected == recipe["model"]
    assert recipe["batch"] == {"global_size": 8, "micro_size": 8}
    assert recipe["optimizer"]["lr"] == pytest.approx(10 * USUAL.optimizer.lr * 8 / 64)
    text = output + errors
    assert "0/0000.png is no PNG image that can be decoded" in text
    assert "skipped files: 1 .txt (a text)" in text
    assert "75 training and 15 validation images" in text
    assert "<html" in (run / "report" / "index.html").read_text()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert f"seresnext predict --checkpoint {Path('runs/photos')} IMAGES" in output
    # The same command keeps the recipe, and looks for no weights.
    monkeypatch.setattr(locate, "download_file", lambda url, folder: pytest.fail("a resume looks for weights"))
    code, output, errors = finetune(photos, "--set", "logging.every=2st")
    assert (code, "is complete, nothing to do" in output) == (0, True), errors
    assert "WITHOUT" not in output
    # A report that fails leaves the run finished.
    monkeypatch.setattr("seresnext.commands.finetune.report_run", Mock(side_effect=DataError("no space is left")))
    assert finetune(photos)[0] == 3
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


@pytest.mark.full
def test_weights_of_a_run_start_another(finetune: Finetune, photos: Path, tmp_path: Path):
    assert finetune(photos, "--weights", "none")[0] == 0
    first = tmp_path / "runs" / "photos"
    code, output, errors = finetune(photos, "--weights", str(first), "--output", "second")
    assert code == 0, errors
    assert "WITHOUT" not in output
    recipe = yaml.safe_load(Path("second/recipe.yaml").read_text())
    assert (recipe["model"]["weights"], recipe["model"]["reset_head"]) == (str(first), True)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "nowhere.pth"], 4, "nowhere.pth"),
        (["--resume", "nowhere.safetensors"], 2, "nowhere.safetensors"),
        (["--lr", "0.1"], 2, "give a key of the recipe as --set KEY=VALUE"),
        (["--set", "model.num_classes=7"], 3, "set model.num_classes=3"),
    ],
)
def test_a_mistake_is_one_message(finetune: Finetune, photos: Path, options: list[str], code: int, words: str):
    found, _, errors = finetune(photos, *options)
    assert (found, words in errors, "Traceback" in errors) == (code, True, False), errors
    assert not [*Path("runs").rglob("*.safetensors")]


def test_photos_that_are_not_there(finetune: Finetune, tmp_path: Path):
    code, _, errors = finetune(tmp_path / "nowhere")
    assert (code, "there is no" in errors) == (3, True), errors


@pytest.mark.parametrize("num_images", [3, 17, 60, 240, 1000, 10_000, 50_000, 1_000_000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_settings_suit_the_number_of_images(num_images: int, world_size: int):
    found = dict(setting.split("=") for setting in suited_settings(USUAL, USUAL, num_images, world_size))
    size, micro = int(found["batch.global_size"]), int(found["batch.micro_size"])
    epochs = int(found["length"].removesuffix("ep"))
    assert size % (micro * world_size) == 0
    assert micro <= 32
    assert 5 <= epochs <= 60
    assert float(found["optimizer.lr"]) == pytest.approx(USUAL.optimizer.lr * size / USUAL.batch.global_size, rel=1e-5)
    if num_images >= world_size:
        assert size <= num_images
    if num_images >= 64 * world_size:
        assert num_images // size >= 8
        assert epochs * (num_images // size) >= 300 or epochs == 60
    if num_images > 20_000:
        assert epochs == max(400_000 // num_images, 5)
    every = int(found["evaluation.every"].removesuffix("ep"))
    assert found["checkpoint.every"] == found["evaluation.every"]
    assert every == 1 if epochs < 40 else 20 <= epochs // every < 40
    load_recipe("finetune", [f"{key}={value}" for key, value in found.items()])  # The checks accept the settings.


def test_settings_of_the_user_stay():
    own = ["batch={global_size: 32, micro_size: 16}", "length=7ep"]
    for more, lr in ((), "0.0025"), (("model.weights=null", "model.reset_head=false"), "0.025"):
        recipe = load_recipe("finetune", [*own, *more]).recipe
        assert suited_settings(USUAL, recipe, 1000, 1) == ["batch.global_size=32", f"optimizer.lr={lr}"]
