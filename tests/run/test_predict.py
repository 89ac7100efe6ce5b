"""`seresnext predict` compared with timm's network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from seresnext.arguments import Parser
from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.commands import tools
from seresnext.errors import CheckpointError, DataError, Failure
from seresnext.recipe.load import load_recipe, to_values
from seresnext.run import predict

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
    steps = [transforms.Resize(resize, transforms.InterpolationMode(mode)), transforms.CenterCrop(crop)]
    steps += [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    with torch.inference_mode():
        images = torch.stack([transforms.Compose(steps)(Image.open(path)) for path in paths])
        return oracle.forward_head(oracle.forward_features(images), pre_logits=True).numpy()


def expected_lines(oracle: torch.nn.Module, paths: list[Path], features: np.ndarray, names: list[str]) -> list[str]:
    lines = []
    for path, row in zip(paths, torch.from_numpy(features), strict=True):
        probabilities = oracle.last_linear(row).softmax(0).tolist()
        best = sorted(range(len(names)), key=lambda label: -probabilities[label])[:2]
        lines += [str(path), *(f"  {100 * probabilities[label]:6.2f} %  {names[label]}" for label in best)]
    return lines


@pytest.fixture
def classify(capsys):
    """`classify(checkpoint, images, *words) -> output` of the command, in this process."""

    def run(checkpoint: Path, images: list[Path], *words: object) -> str:
        parser = Parser()
        tools.predict_arguments(parser)
        tools.predict(parser.parse([str(word) for word in ("--checkpoint", checkpoint, *images, *words)]))
        return capsys.readouterr().out

    return run


def our_checkpoint(oracle: torch.nn.Module, folder: Path, *overrides: str) -> Path:
    values = to_values(load_recipe("digits", ["model.num_classes=5", "evaluation.crop_pct=0.8", *overrides]).recipe)
    dataset = {"classes": CLASSES, "num_images": 5, "fingerprint": ""}
    facts = CheckpointMetadata(
        7, values, recipe_hash="", best=None, history=[], dataset=dataset, environment={}, progress={}
    )
    tensors = {f"model.{name}": tensor for name, tensor in oracle.state_dict().items()}
    return store.commit(folder, 7, tensors, facts.to_metadata())


@pytest.mark.parametrize("kind", ["published", "of others", "ours"])
def test_predictions_are_timms(classify, tmp_path, oracle, photographs, kind):
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
    output = classify(checkpoint, photographs, "--top", 2, "--features", tmp_path / "features.npy")
    features = np.load(tmp_path / "features.npy")
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert output.splitlines()[:-1] == expected_lines(oracle, photographs, features, names)


def test_a_damaged_checkpoint_predicts_nothing(classify, tmp_path, oracle, photographs):
    checkpoint = our_checkpoint(oracle, tmp_path)
    content = bytearray(checkpoint.read_bytes())
    content[-1000] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=checkpoint.name):
        classify(checkpoint, photographs)


@pytest.mark.parametrize(
    ("checkpoint", "image", "words", "code", "message"),
    [
        ("none.pth", "a.png", [], 4, "none.pth"),
        ("https://host//w.pth", "a.png", [], 2, "https://host//w.pth"),
        ("", "none.png", [], 3, "none.png cannot be read: No such file"),
        ("", "", ["--features", "no/such/folder"], 2, "no/such/folder"),
        ("", "", ["--top", "0"], 2, "--top 0"),
    ],
)
def test_wrong_words_are_explained(classify, tmp_path, oracle, photographs, checkpoint, image, words, code, message):
    with pytest.raises(Failure) as caught:
        classify(checkpoint or our_checkpoint(oracle, tmp_path), [image or photographs[0]], *words)
    assert caught.value.exit_code == code
    assert message in str(caught.value)


def test_images_are_as_large_as_the_checkpoint_or_the_option_allows(
    classify, tmp_path, oracle, photographs, monkeypatch
):
    """The two photographs have 70,000 and 135,000 pixels."""
    monkeypatch.setattr(predict, "MAX_PIXELS", 100_000)
    published = tmp_path / "weights.pth"
    torch.save(oracle.state_dict(), published)
    small, large = (our_checkpoint(oracle, tmp_path / str(most), f"data.max_pixels={most}") for most in (80000, 135000))
    images = photographs[::-1]
    for checkpoint, words in ((large, ()), (small, ("--max-pixels", 135000)), (published, ("--max-pixels", 140000))):
        assert classify(checkpoint, images, "--top", 1, *words).count("%") == 2
    for checkpoint, words, limit in (
        (small, (), 80000),
        (large, ("--max-pixels", 90000), 90000),
        (published, (), 100000),
    ):
        with pytest.raises(DataError, match=rf"1\.png .*--max-pixels.*\({limit}\)") as caught:
            classify(checkpoint, images, *words)
        assert "data.max_pixels" not in str(caught.value)
