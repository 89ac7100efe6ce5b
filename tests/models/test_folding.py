"""Folded models compared with timm's network. `export/test_verify.py` has tensors that are refused."""

import torch
from exports import CLASSES, make_oracle
from torch import nn

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
