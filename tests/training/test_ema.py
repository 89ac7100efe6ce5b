"""The EMA against torch's AveragedModel, and the warm-up against the formula."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from seresnext.training.ema import Ema


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def move(model):
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(torch.ones_like(tensor))


def test_weights_and_buffers_equal_torchs():
    model = net()
    ema = Ema(model, 0.9, warmup=False)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    reference.update_parameters(model)  # The first update of AveragedModel only copies.
    for step in range(5):
        move(model)
        ema.update(step)
        reference.update_parameters(model)
    for name, tensor in reference.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(ema.model.state_dict()[name], tensor), name
    assert ema.model[1].num_batches_tracked == model[1].num_batches_tracked


def test_warmup_decay():
    assert [Ema(net(), 0.99, warmup=True).decay_at(step) for step in (0, 90, 10_000)] == [0.1, 91 / 100, 0.99]
