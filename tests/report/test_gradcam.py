"""Grad-CAM, against the formula of the paper with torch's gradients."""

import numpy as np
import pytest
import torch
from PIL import Image

from seresnext.models import create_model
from seresnext.report.gradcam import choose_stage, grad_cam, overlay


@pytest.mark.parametrize(
    ("size", "stage"), [(224, "layer4"), (128, "layer4"), (64, "layer3"), (32, "layer2"), (8, "layer2")]
)
def test_a_map_has_positions(size, stage):
    assert choose_stage(size) == stage


@pytest.mark.parametrize("stage", ["layer4", "layer2"])
def test_the_maps_are_those_of_the_formula(stage):
    """Selvaraju et al. 2017, equations 1 and 2: ReLU of the channels, weighted by the mean gradient of the score."""
    torch.manual_seed(0)
    model = create_model("seresnext26", 5).eval()
    images, classes = torch.randn(9, 3, 64, 64), [4, 0, 2, 1, 3, 0, 0, 2, 4]
    kept = []
    hook = model.get_submodule(stage).register_forward_hook(lambda module, args, output: kept.append(output))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(9), classes].sum(), kept[0])
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    expected /= expected.amax((1, 2), keepdim=True).clamp_min(1e-12)  # A map without a positive place is 0.
    found = grad_cam(model, images, classes, stage)
    assert found.max() == 1
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=1e-4)
    other = grad_cam(model, images, [1] * 9, stage)
    assert not np.allclose(other, found, atol=0.01)


def test_the_overlay_is_orange_at_high_places():
    image = Image.new("RGB", (20, 20), (90, 90, 90))
    pixels = np.asarray(overlay(image, np.array([[1.0, 0.0], [0.0, 0.0]])), dtype=int)
    assert pixels[0, 0, 0] > 200 > pixels[0, 0, 2]
    assert (pixels[-1, -1] == 90).all()
