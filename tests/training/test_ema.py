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
    ema = Ema(net(), 0.99, warmup=True)
    assert [ema.decay_at(step) for step in (0, 90, 10_000)] == [0.1, 91 / 100, 0.99]


def test_a_skipped_update_keeps_every_bit():
    """Also of minus zero, which an update by zero would change to zero."""
    model, sound = net(), net()
    ema, other = Ema(model, 0.9, warmup=True), Ema(model, 0.9, warmup=True)
    for average in (ema, other):
        average.model[0].weight.view(-1)[0] = -0.0
    before = {name: tensor.numpy().tobytes() for name, tensor in ema.model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
        model[1].running_var.fill_(torch.inf)
    ema.update(0, torch.tensor(1.0))
    assert {name: tensor.numpy().tobytes() for name, tensor in ema.model.state_dict().items()} == before
    model.load_state_dict(sound.state_dict())
    move(model)
    ema.update(1, torch.tensor(0.0))
    other.update(1)
    for name, tensor in ema.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    assert ema.model.state_dict()["0.weight"].numpy().tobytes() != before["0.weight"]
