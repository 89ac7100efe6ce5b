"""A model card, read by huggingface_hub."""

from __future__ import annotations

from huggingface_hub import ModelCard

from seresnext.export.card import ModelFacts, write_card
from seresnext.models import Preprocessing


def facts(evaluation: dict[str, float] | None) -> ModelFacts:
    how = Preprocessing(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    classes = ["<script>alert(1)</script>", "a|b", "[x](http://y)", *map(str, range(30))]
    return ModelFacts(
        "ants: 1", "legacy_seresnext26_32x4d", classes, 5, how, "ema", "0" * 64, {"Learning rate": 0.6}, evaluation
    )


def test_the_hub_reads_the_card():
    evaluation = {"top1": 98.5, "top5": 99.5, "loss": 0.1, "num_images": 360.0, "temperature": 1.25}
    card = ModelCard(write_card(facts(evaluation)))
    results = card.data.eval_results or []
    assert {result.metric_name: result.metric_value for result in results} == {
        "Top 1 Accuracy": 98.5,
        "Top 5 Accuracy": 99.5,
    }
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert "| Temperature | 1.2500 |" in card.text
    assert "| Learning rate | 0.6 |" in card.text


def test_a_card_without_evaluation_has_no_accuracy():
    card = ModelCard(write_card(facts(None)))
    assert not card.data.eval_results
    assert "Not measured" in card.text
    assert "%" not in card.text
    assert "Temperature" not in card.text


def test_names_of_classes_are_text_in_a_card():
    text = write_card(facts(None))
    assert "<script" not in text
    assert "a\\|b" in text
    assert "[x](" not in text
    assert "..." in text
