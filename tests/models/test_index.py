"""The model index and the table. Oracle: the published facts of timm's page, sums by hand."""

import re

import pytest
import torch
import yaml
from conftest import ROOT
from exports import run
from torch import nn

from seresnext.models import MODELS, create_model
from seresnext.models.index import count_multiply_adds, print_models

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
COUNTS = {  # parameters and multiply-adds by the depth
    26: (16_790_280, 2_472_099_840),
    50: (27_559_896, 4_232_994_816),
    101: (48_955_416, 7_974_739_968),
}
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
        assert (facts["Parameters"], facts["Multiply-Adds"]) == COUNTS[layers]
        assert model["Code"].endswith(f"timm/models/senet.py#L{line}")
        assert model["Weights"] == address
        metrics = {"Top 1 Accuracy": top1, "Top 5 Accuracy": top5}
        assert model["Results"] == [{"Task": "Image Classification", "Dataset": "ImageNet", "Metrics": metrics}]


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_multiply_adds(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    counts = sum(parameter.numel() for parameter in model.parameters()), count_multiply_adds(model)
    assert counts == COUNTS[int(re.findall(r"\d+", name)[0])]


def test_the_table_of_the_readme() -> None:
    """The test above shows that the counts are those of the code."""
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `seresnext")]
    for name, row in MODELS.items():
        parameters, multiply_adds = COUNTS[int(re.findall(r"\d+", name)[0])]
        figures = f"| {parameters:,} | {multiply_adds / 1e9:.2f} G | [`{row.weights_urls[-1].rpartition('/')[2]}`]"
        assert any(figures in line and line.endswith(f"| {row.top1} / {row.top5} |") for line in table), name


def test_multiply_adds_by_hand() -> None:
    """A grouped, strided convolution: 2*4*4 outputs of 3*3*2 products each. A linear layer of 16 to 7, twice."""
    model = nn.Sequential(
        nn.Conv2d(4, 2, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(2), nn.Flatten(2), nn.Linear(16, 7)
    )
    assert count_multiply_adds(model, in_channels=4, image_size=8) == 2 * 16 * 18 + 2 * 7 * 16
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_the_table_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    print_models()
    rows = [re.split(r"\s{1,}", line) for line in capsys.readouterr().out.splitlines() if "_32x4d " in line]
    expected = "legacy_seresnext50_32x4d 27,559,896 4.23 G 79.08 94.43 {weights_file} (110,559,176)"
    assert " ".join(rows[1]) == expected.format(weights_file="se_resnext50_32x4d-a260b3a4.pth")
    assert [row[0] for row in rows] == list(MODELS)
