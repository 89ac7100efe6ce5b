"""`seresnext card`, read by huggingface_hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from exports import CLASSES, run
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import save_file

RESULT = {"top1": 81.25, "top5": 99.5, "loss": 0.75, "num_images": 360, "weights": "ema"}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    return path


def test_the_hub_reads_the_card(checkpoint: Path, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "new" / "README.md"
    assert run("card", "--checkpoint", checkpoint, "--evaluation", result, "--output", path) == 0
    card = ModelCard.load(path)
    header = yaml.safe_load(card.content.split("---")[1])
    name, results = model_index_to_eval_results(header["model-index"])
    assert name == "legacy_seresnext26_32x4d, 5 classes"
    assert [(found.metric_name, found.metric_value) for found in results] == [
        ("Top 1 Accuracy", 81.25),
        ("Top 5 Accuracy", 99.5),
    ]
    assert {(found.task_type, found.metric_type) for found in results} == {("image-classification", "accuracy")}
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert card.data.metrics == ["accuracy"]
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
        (["--checkpoint", "{run}", "--evaluation", "{result}x"], 3, "result.jsonx"),
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
