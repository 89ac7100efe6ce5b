"""The model index. Oracle: the published facts of timm's page, and timm's networks."""

from __future__ import annotations

import pytest
import timm
import torch
import yaml
from exports import run

KEYS = [
    "FLOPs", "Multiply-Adds", "Parameters", "File Size", "Architecture", "Tasks", "Training Techniques",
    "Training Data", "Training Resources", "ID", "LR", "Epochs", "Layers", "Dropout", "Crop Pct", "Momentum",
    "Batch Size", "Image Size", "Interpolation",
]  # fmt: skip
# FLOPs, bytes, layers, interpolation, top-1, top-5, line, address
PUBLISHED = {
    "legacy_seresnext26_32x4d": (
        3_187_342_304, 67_346_327, 26, "bicubic", "77.11%", "93.31%", 448,
        "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
        "seresnext26_32x4d-65ebdb501.pth",
    ),
    "legacy_seresnext50_32x4d": (
        5_459_954_352, 110_559_176, 50, "bilinear", "79.08%", "94.43%", 455,
        "http://data.lip6.fr/cadene/pretrainedmodels/se_resnext50_32x4d-a260b3a4.pth",
    ),
    "legacy_seresnext101_32x4d": (
        10_287_698_672, 196_466_866, 101, "bilinear", "80.23%", "95.02%", 462,
        "http://data.lip6.fr/cadene/pretrainedmodels/se_resnext101_32x4d-3b2fe3d8.pth",
    ),
}  # fmt: skip
SAME = {
    "LR": 0.6, "Epochs": 100, "Batch Size": 1024, "Momentum": 0.9, "Dropout": 0.2, "Crop Pct": "0.875",
    "Image Size": "224", "Training Resources": "8x NVIDIA Titan X GPUs", "Tasks": ["Image Classification"],
    "Training Techniques": ["Label Smoothing", "SGD with Momentum", "Weight Decay"], "Training Data": ["ImageNet"],
}  # fmt: skip


def test_index(capsys: pytest.CaptureFixture[str]):
    assert run("models", "--index") == 0
    text = capsys.readouterr().out
    assert "&" not in text  # No anchors: a reader may not know them.
    index = yaml.safe_load(text)
    assert list(index) == ["Collections", "Models"]
    assert [model["Name"] for model in index["Models"]] == list(PUBLISHED)
    for model in index["Models"]:
        assert list(model) == ["Name", "In Collection", "Metadata", "Code", "Weights", "Results"]
        assert model["In Collection"] == index["Collections"][0]["Name"]
        flops, size, layers, interpolation, top1, top5, line, address = PUBLISHED[model["Name"]]
        facts = model["Metadata"]
        assert list(facts) == KEYS
        assert (facts["FLOPs"], facts["File Size"], facts["Layers"]) == (flops, size, layers)
        assert (facts["ID"], facts["Interpolation"]) == (model["Name"], interpolation)
        assert {key: facts[key] for key in SAME} == SAME
        with torch.device("meta"):
            oracle = timm.create_model(model["Name"])
        assert facts["Parameters"] == sum(parameter.numel() for parameter in oracle.parameters())
        assert len(facts["Architecture"]) == 11
        assert model["Code"].startswith("https://github.com/")
        assert model["Code"].endswith(f"timm/models/senet.py#L{line}")
        assert model["Weights"] == address
        metrics = {"Top 1 Accuracy": top1, "Top 5 Accuracy": top5}
        assert model["Results"] == [{"Task": "Image Classification", "Dataset": "ImageNet", "Metrics": metrics}]
    giga = [round(model["Metadata"]["Multiply-Adds"] / 1e9, 2) for model in index["Models"]]
    assert giga == [2.47, 4.23, 7.97]


def test_without_the_option_there_is_a_table(capsys: pytest.CaptureFixture[str]):
    assert run("models") == 0
    assert "Collections" not in capsys.readouterr().out
