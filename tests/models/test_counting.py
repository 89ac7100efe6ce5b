"""Oracle: torch's own flop counter, and the published numbers of parameters."""

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seresnext.models import MODELS, create_model
from seresnext.models.counting import count_multiply_adds, print_models


@pytest.mark.parametrize(
    ("name", "params", "giga"),
    [
        ("legacy_seresnext26_32x4d", 16_790_280, 2.47),
        ("legacy_seresnext50_32x4d", 27_559_896, 4.23),
        ("legacy_seresnext101_32x4d", 48_955_416, 7.97),
        ("seresnext50_32x4d", 27_559_896, 4.23),
        ("seresnext101_32x4d", 48_955_416, 7.97),
    ],
)
def test_models(name: str, params: int, giga: float) -> None:
    with torch.device("meta"):
        model = create_model(name)
    row = MODELS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == row.params == params
    assert count_multiply_adds(model) == row.multiply_adds
    assert round(row.multiply_adds / 1e9, 2) == giga
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * row.multiply_adds


def test_by_hand() -> None:
    """A grouped, strided convolution: 2*4*5 outputs of 3x3x2 products each; a linear layer on each of the 5."""
    model = nn.Sequential(
        nn.Conv2d(4, 2, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(2), nn.Flatten(2), nn.Linear(16, 7)
    )
    assert count_multiply_adds(model, in_channels=4, image_size=8) == 2 * 16 * 18 + 2 * 7 * 16
    assert model.training
    assert model[1].num_batches_tracked == 0
    assert not model[0]._forward_hooks


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_models()
    rows = [re.split(r"\s{1,}", line) for line in capsys.readouterr().out.splitlines() if "_32x4d " in line]
    expected = "legacy_seresnext50_32x4d 27,559,896 4.23 G 110,512,904 79.08 94.43 {weights_file} (110,559,176)"
    assert " ".join(rows[1]) == expected.format(weights_file="se_resnext50_32x4d-a260b3a4.pth")
    assert [row[0] for row in rows] == list(MODELS)
