"""Weights under timm's names, of timm's networks with a padded stem. `export/test_hub.py` brings them back."""

from typing import Any

import pytest
import timm
import torch

from seresnext.errors import CheckpointError
from seresnext.models import create_model, load_weights
from seresnext.models.pretrained import identify_model


@pytest.fixture(scope="module")
def timms() -> Any:
    """timm's newer 50, with random weights and statistics."""
    torch.manual_seed(0)
    model = timm.create_model("seresnext50_32x4d", num_classes=7, zero_init_last=False)
    for name, buffer in model.named_buffers():
        buffer.fill_(3) if name.endswith("tracked") else buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.full
def test_weights_of_the_other_stem_are_refused(timms: Any) -> None:
    """All shapes agree: the names, or the recipe of a checkpoint, tell the stem."""
    padded, rounded = create_model("seresnext50_32x4d", 7), create_model("seresnext50", 7)
    load_weights(padded, timms.state_dict(), "weights.pth")
    for model, tensors, recorded, fix in [
        (rounded, timms.state_dict(), None, "model.name=seresnext50_32x4d"),
        (padded, rounded.state_dict(), None, "model.name=legacy_seresnext50_32x4d"),
        (padded, padded.state_dict(), "seresnext50", "model.name=legacy_seresnext50_32x4d"),
        (rounded, padded.state_dict(), "seresnext50_32x4d", "model.name=seresnext50_32x4d"),
    ]:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=r"weights\.pth") as caught:
            load_weights(model, tensors, "weights.pth", recorded_name=recorded)
        assert fix in str(caught.value)
        assert "stem" in str(caught.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # Without a classifier in the file the model is unknown, and the stem is still refused.
    headless = {name: tensor for name, tensor in timms.state_dict().items() if not name.startswith("fc.")}
    with pytest.raises(CheckpointError, match="stem"):
        load_weights(rounded, headless, "weights.pth", reset_head=True)
    assert "has no classifier" in load_weights(padded, headless, "weights.pth", reset_head=True)[0]


def test_a_file_with_two_names_for_one_tensor_is_refused(timms: Any) -> None:
    tensors = dict(timms.state_dict())
    tensors["last_linear.weight"] = tensors["fc.weight"]
    with pytest.raises(CheckpointError, match="names of two models"):
        identify_model(tensors)
