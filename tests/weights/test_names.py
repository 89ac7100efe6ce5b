"""Prefixes in the names of tensors."""

import pytest

from seresnext.errors import CheckpointError
from seresnext.weights.names import model_tensors


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes(prefix: str) -> None:
    """A prefix counts at the start only: a module can have the name `module`. The order is kept."""
    found = model_tensors({f"{prefix}layer1.module.weight": 1, "a": 2}, "f")
    assert list(found.items()) == [("layer1.module.weight", 1), ("a", 2)]


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(CheckpointError, match="f has the tensor a twice"):
        model_tensors({"a": 1, "module.a": 2}, "f")


def test_ema_before_model() -> None:
    assert model_tensors({"model.a": 1, "ema._orig_mod.a": 2, "optimizer.momentum.a": 3}, "f") == {"a": 2}
    assert model_tensors({"model.a": 1, "optimizer.momentum.a": 3}, "f") == {"a": 1}
