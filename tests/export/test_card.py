"""A model card, read by huggingface_hub."""

from __future__ import annotations

import torch
from huggingface_hub import ModelCard

from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.export.card import write_card
from seresnext.models import LoadedWeights, create_model
from seresnext.recipe.load import load_recipe

CLASSES = ["<script>alert(1)</script>", "a|b", "[x](http://y)", *map(str, range(30))]


def card_of(evaluation: dict[str, float] | None) -> str:
    recipe = load_recipe("digits", [f"model.num_classes={len(CLASSES)}", "optimizer.lr=0.6"]).recipe
    metadata = CheckpointMetadata(1, {}, "", None, [], {"classes": CLASSES, "num_images": 64}, {}, {})
    with torch.device("meta"):
        model = create_model(recipe.model.name, len(CLASSES))
    loaded = LoadedWeights("file", model.state_dict(), "ema", recipe, metadata)
    return write_card(model, loaded, "0" * 64, 5, evaluation)


def test_the_hub_reads_the_card():
    evaluation = {"top1": 98.5, "top5": 99.5, "loss": 0.1, "num_images": 360.0, "temperature": 1.25}
    card = ModelCard(card_of(evaluation))
    results = card.data.eval_results or []
    assert {result.metric_name: result.metric_value for result in results} == {
        "Top 1 Accuracy": 98.5,
        "Top 5 Accuracy": 99.5,
    }
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert "| Temperature | 1.2500 |" in card.text
    assert "| LR | 0.6 |" in card.text


def test_a_card_without_evaluation_has_no_accuracy():
    card = ModelCard(card_of(None))
    assert not card.data.eval_results
    assert "Not measured" in card.text
    assert "%" not in card.text
    assert "Temperature" not in card.text


def test_names_of_classes_are_text_in_a_card():
    text = card_of(None)
    assert "<script" not in text
    assert "a\\|b" in text
    assert "[x](" not in text
    assert "..." in text
