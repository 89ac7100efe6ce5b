"""A model card, read by huggingface_hub, and its facts of the training, from recipes and metadata."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard

from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.export.card import describe_training, write_card
from seresnext.models import LoadedWeights, create_model
from seresnext.recipe.load import load_recipe

CLASSES = ["<script>alert(1)</script>", "a|b", "[x](http://y)", *map(str, range(30))]
EVALUATION = {"top1": 98.5, "top5": 99.5, "loss": 0.1, "num_images": 360.0, "temperature": 1.25}


def card_of(classes: list[str], num_images: int = 64) -> ModelCard:
    recipe = load_recipe("digits", [f"model.num_classes={len(classes)}", "optimizer.lr=0.6"]).recipe
    metadata = CheckpointMetadata(1, {}, "", None, [], {"classes": classes, "num_images": num_images}, {}, {})
    with torch.device("meta"):
        model = create_model(recipe.model.name, len(classes))
    loaded = LoadedWeights("file", model.state_dict(), "ema", recipe, metadata)
    return ModelCard(write_card(model, loaded, "0" * 64, 5, EVALUATION))


def test_names_of_classes_are_text_in_a_card():
    card = card_of(CLASSES)
    assert "| Temperature | 1.2500 |" in card.text
    assert "| LR | 0.6 |" in card.text
    assert "<script" not in card.text
    assert "a\\|b" in card.text
    assert "[x](" not in card.text
    assert "..." in card.text


@pytest.mark.parametrize(("num_images", "datasets"), [(1_281_167, ["imagenet-1k"]), (1_281_166, None)])
def test_imagenet_is_known_by_its_sizes(num_images: int, datasets: list[str] | None):
    assert card_of([f"c{number}" for number in range(1000)], num_images).data.datasets == datasets


def loaded(*settings: str, environment: dict[str, Any] | None = None) -> LoadedWeights:
    with torch.device("meta"):
        tensors = dict(timm.create_model("legacy_seresnext26_32x4d", num_classes=10).state_dict())
    dataset = {"classes": [f"c{number}" for number in range(10)], "num_images": 200, "fingerprint": ""}
    metadata = CheckpointMetadata(7, {}, "", None, [], dataset, environment or {}, {})
    return LoadedWeights("file", tensors, "model", load_recipe("digits", list(settings)).recipe, metadata)


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
    assert describe_training(loaded(environment=environment), 1).get("Training Resources") == resources
