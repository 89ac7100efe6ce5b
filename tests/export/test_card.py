"""A model card, read by huggingface_hub, its facts of the training, from recipes and metadata, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exports import CLASSES, run
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import save_file

from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.export.card import describe_training, write_card
from seresnext.models import LoadedWeights, create_model
from seresnext.recipe.load import load_recipe

EVALUATION = {"top1": 81.25, "top5": 99.5, "loss": 0.75, "num_images": 360, "weights": "ema"}
NAMES = [f"c{number}" for number in range(10)]


def loaded(*settings: str, classes: list[str] = NAMES, num_images: int = 200, **environment: Any) -> LoadedWeights:
    """Return the weights of a run, without numbers."""
    recipe = load_recipe("digits", [f"model.num_classes={len(classes)}", *settings]).recipe
    with torch.device("meta"):
        tensors = create_model(recipe.model.name, len(classes)).state_dict()
    dataset = {"classes": classes, "num_images": num_images, "fingerprint": ""}
    metadata = CheckpointMetadata(7, {}, "", None, [], dataset, environment, {})
    return LoadedWeights("file", tensors, "model", recipe, metadata)


def card_of(weights: LoadedWeights) -> ModelCard:
    with torch.device("meta"):
        model = create_model("seresnext26", weights.identify().num_classes)
    return ModelCard(write_card(model, weights, "0" * 64, 5, {**EVALUATION, "temperature": 1.25}))


def test_names_of_classes_are_text_in_a_card():
    card = card_of(loaded(classes=["<script>alert(1)</script>", "a|b", "[x](http://y)", *map(str, range(30))]))
    assert "| Temperature | 1.2500 |" in card.text
    assert "<script" not in card.text
    assert "a\\|b" in card.text
    assert "[x](" not in card.text
    assert "..." in card.text


@pytest.mark.parametrize(("num_images", "datasets"), [(1_281_167, ["imagenet-1k"]), (1_281_166, None)])
def test_imagenet_is_known_by_its_sizes(num_images: int, datasets: list[str] | None):
    classes = [f"c{number}" for number in range(1000)]
    assert card_of(loaded(classes=classes, num_images=num_images)).data.datasets == datasets


def test_the_recipe_gives_the_settings():
    facts = describe_training(loaded("batch.global_size=64", "optimizer.lr=0.3", "model.drop_rate=0.1"), 123)
    assert (facts["LR"], facts["Batch Size"], facts["Dropout"], facts["Momentum"]) == (0.3, 64, 0.1, 0.9)
    assert (facts["File Size"], facts["Layers"], facts["Steps"]) == (123, 26, 7)
    assert facts["Epochs"] == 2.33  # An epoch has 3 steps of 64 images; 8 images are left over.
    assert facts["Training Data"] == ["200 images of 10 classes"]
    assert "FLOPs" not in facts


@pytest.mark.parametrize(
    ("settings", "techniques"),
    [
        (["optimizer.momentum=0.9"], ["SGD with Momentum", "Weight Decay", "Label Smoothing"]),
        (["optimizer.momentum=0", "optimizer.weight_decay=0", "loss.label_smoothing=0"], ["SGD"]),
        (["optimizer={name: adamw}", "loss.label_smoothing=0"], ["AdamW", "Weight Decay"]),
        (
            ["loss.label_smoothing=0", "mix.cutmix=1", "ema={}", "augment.policy={name: trivialaugment}"],
            ["SGD with Momentum", "Weight Decay", "CutMix", "TrivialAugment", "Exponential Moving Average"],
        ),
    ],
)
def test_techniques(settings: list[str], techniques: list[str]):
    facts = describe_training(loaded(*settings), 1)
    assert facts["Training Techniques"] == techniques
    assert ("Momentum" in facts) == ("AdamW" not in techniques)


@pytest.mark.parametrize(
    ("environment", "resources"),
    [
        ({"world_size": 8, "gpu": "NVIDIA H200", "cpu": "AMD"}, "8x NVIDIA H200"),
        ({"world_size": 1, "gpu": None, "cpu": "AMD EPYC"}, "1 process on AMD EPYC"),
        ({"world_size": 2, "cpu": "AMD EPYC"}, "2 processes on AMD EPYC"),
        ({"world_size": "x", "gpu": "A"}, None),
        ({"world_size": 2, "gpu": ["A"]}, None),
        ({}, None),
    ],
)
def test_resources(environment: dict[str, Any], resources: str | None):
    assert describe_training(loaded(**environment), 1).get("Training Resources") == resources


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(EVALUATION))
    return path


def test_the_hub_reads_the_card(checkpoint: Path, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "new" / "README.md"
    assert run("card", "--checkpoint", checkpoint, "--evaluation", result, "--output", path) == 0
    card = ModelCard.load(path)
    name, results = model_index_to_eval_results(yaml.safe_load(card.content.split("---")[1])["model-index"])
    assert name == "legacy_seresnext26_32x4d, 5 classes"
    metrics = [("Top 1 Accuracy", 81.25), ("Top 5 Accuracy", 99.5)]
    assert [(found.metric_name, found.metric_value) for found in results] == metrics
    assert {(found.task_type, found.metric_type) for found in results} == {("image-classification", "accuracy")}
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert card.data.license is None  # The user decides.
    for row in ("Batch Size | 64", "Steps | 7", "Layers | 26", "Crop Pct | 0.8", "Image Size | 64"):
        assert f"| {row} |" in card.text
    assert f"{len(CLASSES)}: ant, bee, &lt;script&gt;" in card.text
    assert "golden" not in card.text
    capsys.readouterr()
    assert run("card", "--checkpoint", checkpoint, "--evaluation", result) == 0
    assert capsys.readouterr().out == path.read_text()


def test_without_evaluation_and_recipe(oracles, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_file(oracles["model"].state_dict(), tmp_path / "bare.safetensors")
    assert run("card", "--checkpoint", tmp_path / "bare.safetensors") == 0
    card = ModelCard(capsys.readouterr().out)
    assert not card.data.eval_results
    assert "Not measured" in card.text
    assert "## Training" not in card.text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--checkpoint", "{run}", "--weights", "model", "--evaluation", "{result}"], 3, "weights"),
        (["--checkpoint", "{result}"], 4, "result.json"),
        (["--checkpoint", "{run}", "--evaluation", "{result}", "--output", "{run}"], 2, "cannot be written"),
        (["--checkpoint", "{run}", "--output", "{result}/README.md"], 2, "README.md cannot be written"),
        (["--evaluation", "{result}"], 2, "--checkpoint"),
    ],
)
def test_mistakes(checkpoint: Path, result: Path, words: list[str], code: int, message: str, capsys):
    before = sorted(result.parent.iterdir())
    assert run("card", *(word.format(run=checkpoint, result=result) for word in words)) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert sorted(result.parent.iterdir()) == before
