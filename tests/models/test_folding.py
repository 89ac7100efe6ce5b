"""Folded models compared with timm's network."""

from __future__ import annotations

import pytest
import torch
from exports import CLASSES, make_oracle
from torch import nn

from seresnext.errors import CheckpointError
from seresnext.models import create_model, load_weights
from seresnext.models.folding import build_folded, fold_batchnorm

NAME = "legacy_seresnext26_32x4d"


def test_a_folded_model_gives_timms_logits():
    oracle = make_oracle(NAME, 0)
    model = create_model(NAME, len(CLASSES))
    load_weights(model, oracle.state_dict(), "timm")
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    again = build_folded(NAME, len(CLASSES), folded.state_dict(), "file")
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = oracle(images)
        for found in (folded, again, folded.to(memory_format=torch.channels_last)):
            assert (found(images) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    # The given model is unchanged, and still trains.
    assert model.training
    assert isinstance(model.layer0[1], nn.BatchNorm2d)


def test_tensors_of_another_model_are_refused():
    folded = fold_batchnorm(create_model(NAME, 3)).state_dict()
    with pytest.raises(CheckpointError, match="file is no folded"):
        build_folded(NAME, 4, folded, "file")
    with pytest.raises(CheckpointError, match=r"unexpected: layer0\.conv1\.bias"):
        load_weights(create_model(NAME, 3), folded, "file")
    del folded["layer0.conv1.bias"]
    with pytest.raises(CheckpointError, match=r"layer0\.conv1\.bias"):
        build_folded(NAME, 3, folded, "file")
