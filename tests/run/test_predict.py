"""`seresnext predict` compared with timm's network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from launcher import PYTHON
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from seresnext.arguments import Parser
from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.commands import tools
from seresnext.errors import DataError, UsageError
from seresnext.recipe.load import load_recipe, to_values
from seresnext.run import predict

COMMAND = [PYTHON, Path(__file__).parents[2] / "seresnext" / "__main__.py", "predict"]


CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """timm's network with five classes and statistics of one training step."""
    torch.manual_seed(0)
    model = timm.create_model("legacy_seresnext26_32x4d", num_classes=len(CLASSES), drop_rate=0.0)
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(40, 70, 3), (90, 60, 3)]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).resize((size[1] * 5, size[0] * 5)).save(paths[-1])
    return paths


def expected_features(oracle: torch.nn.Module, paths: list[Path], resize: int, crop: int, mode: str) -> np.ndarray:
    transform = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(mode)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(path)) for path in paths])
        return oracle.forward_head(oracle.forward_features(images), pre_logits=True).numpy()


def expected_lines(oracle: torch.nn.Module, paths: list[Path], features: np.ndarray, names: list[str]) -> list[str]:
    lines = []
    for path, row in zip(paths, torch.from_numpy(features), strict=True):
        probabilities = oracle.last_linear(row).softmax(0).tolist()
        best = sorted(range(len(names)), key=lambda label: -probabilities[label])[:2]
        lines += [str(path), *(f"  {100 * probabilities[label]:6.2f} %  {names[label]}" for label in best)]
    return lines


def our_checkpoint(oracle: torch.nn.Module, folder: Path, *overrides: str) -> Path:
    values = to_values(load_recipe("digits", ["model.num_classes=5", "evaluation.crop_pct=0.8", *overrides]).recipe)
    dataset = {"classes": CLASSES, "num_images": 5, "fingerprint": ""}
    facts = CheckpointMetadata(
        7, values, recipe_hash="", best=None, history=[], dataset=dataset, environment={}, progress={}
    )
    tensors = {f"model.{name}": tensor for name, tensor in oracle.state_dict().items()}
    return store.commit(folder, 7, tensors, facts.to_metadata())


@pytest.mark.parametrize("kind", ["published", "of others", "ours"])
def test_predictions_are_timms(run_command, tmp_path, oracle, photographs, kind):
    if kind != "ours":
        checkpoint, names = tmp_path / "weights.pth", [f"class {number}" for number in range(5)]
        torch.save(oracle.state_dict(), checkpoint, _use_new_zipfile_serialization=False)
        if kind == "of others":
            checkpoint = tmp_path / "model.safetensors"
            save_file(oracle.state_dict(), checkpoint, {"format": "pt"})
        expected = expected_features(oracle, photographs, 256, 224, "bicubic")
    else:
        our_checkpoint(oracle, tmp_path / "checkpoints").rename(tmp_path / "checkpoints" / "best.safetensors")
        checkpoint, names = tmp_path, CLASSES  # A run folder.
        expected = expected_features(oracle, photographs, 40, 32, "bilinear")
    argv = [*COMMAND, "--checkpoint", checkpoint, *photographs, "--top", "2"]
    result = run_command([*argv, "--features", tmp_path / "features.npy"])
    assert result.returncode == 0, result.output
    features = np.load(tmp_path / "features.npy")
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert result.stdout.splitlines()[:-1] == expected_lines(oracle, photographs, features, names)


def test_a_damaged_checkpoint_predicts_nothing(run_command, tmp_path, oracle, photographs):
    checkpoint = our_checkpoint(oracle, tmp_path)
    content = bytearray(checkpoint.read_bytes())
    content[-1000] ^= 1
    checkpoint.write_bytes(content)
    result = run_command([*COMMAND, "--checkpoint", checkpoint, *photographs])
    assert result.returncode == 4
    assert checkpoint.name in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--checkpoint", "none.pth", "a.png"], 4, "none.pth"),
        (["--checkpoint", "https://host//w.pth", "a.png"], 2, "https://host//w.pth"),
        (["--checkpoint", "{checkpoint}", "none.png"], 3, "none.png cannot be read: No such file"),
        (["--checkpoint", "{checkpoint}", "{photograph}", "--features", "no/such/folder"], 2, "no/such/folder"),
    ],
)
def test_wrong_words_are_explained(run_command, tmp_path, oracle, photographs, words, code, message):
    places = {"checkpoint": our_checkpoint(oracle, tmp_path), "photograph": photographs[0]}
    result = run_command([*COMMAND, *(word.format(**places) for word in words)])
    assert result.returncode == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_images_are_as_large_as_the_checkpoint_or_the_option_allows(tmp_path, oracle, photographs, monkeypatch, capsys):
    """The two photographs have 70,000 and 135,000 pixels."""
    monkeypatch.setattr(predict, "MAX_PIXELS", 100_000)
    torch.save(oracle.state_dict(), tmp_path / "weights.pth")
    small, large = (
        our_checkpoint(oracle, tmp_path / name, f"data.max_pixels={limit}") for name, limit in LIMITS.items()
    )

    def run(checkpoint: Path, *words: str) -> None:
        parser = Parser()
        tools.predict_arguments(parser)
        images = map(str, reversed(photographs))
        tools.predict(parser.parse(["--checkpoint", str(checkpoint), *images, "--top", "1", *words]))

    for checkpoint, words in (
        (large, ()),
        (small, ("--max-pixels", "135000")),
        (tmp_path / "weights.pth", ("--max-pixels", "140000")),
    ):
        run(checkpoint, *words)
        assert capsys.readouterr().out.count("%") == 2
    for checkpoint, words, limit in (
        (small, (), 80000),
        (large, ("--max-pixels", "90000"), 90000),
        (tmp_path / "weights.pth", (), 100000),
    ):
        with pytest.raises(DataError, match=rf"1\.png .*--max-pixels.*\({limit}\)") as caught:
            run(checkpoint, *words)
        assert "data.max_pixels" not in str(caught.value)
    with pytest.raises(UsageError, match="--max-pixels 0"):
        run(large, "--max-pixels", "0")


LIMITS = {"small": 80_000, "large": 135_000}
