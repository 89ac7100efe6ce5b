"""Every `auto` of a recipe becomes a value: the previous value of the run, or else the value for this device."""

import pytest

from seresnext.distributed import World
from seresnext.recipe.load import load_recipe
from seresnext.recipe.schema import Recipe
from seresnext.run.resolve import resolve_auto


def seresnext50(*settings: str) -> Recipe:
    return load_recipe("seresnext50", settings).recipe


def resolved(recipe: Recipe, previous: Recipe | None = None) -> Recipe:
    changed, notices = resolve_auto(recipe, previous, World())
    assert notices == []
    return changed


def test_a_value_comes_from_the_recipe_then_from_the_run_then_from_the_device():
    found = resolved(seresnext50())
    assert (found.runtime.precision, found.runtime.compile, found.evaluation.weights) == ("fp32", False, "model")
    assert resolved(seresnext50("ema={decay: 0.9}")).evaluation.weights == "ema"
    previous = seresnext50("runtime.precision=fp64", "runtime.compile=false", "evaluation.weights=model")
    assert resolved(previous) == previous
    assert resolved(seresnext50(), previous).runtime.precision == "fp64"
    assert resolved(seresnext50("runtime.precision=fp32"), previous).runtime.precision == "fp32"


def test_gradient_checkpointing_is_eager(monkeypatch: pytest.MonkeyPatch):
    """This holds also if `auto` compiles on this device, or compiled before."""
    monkeypatch.setattr(
        "seresnext.run.resolve.resolve_compile", lambda requested, device: (requested in (True, "auto"), None)
    )
    assert resolved(seresnext50()).runtime.compile is True
    recipe = seresnext50("runtime.grad_checkpointing=true")
    for previous in (None, seresnext50("runtime.compile=true", "runtime.precision=fp32")):
        assert resolved(recipe, previous).runtime.compile is False
