"""Every `auto` of a recipe, resolved for this device."""

from __future__ import annotations

from typing import Any

from seresnext.distributed import World
from seresnext.recipe.schema import Recipe
from seresnext.runtime import resolve_compile, resolve_precision


def resolve_auto(recipe: Recipe, previous: Recipe | None, world: World) -> tuple[Recipe, list[str]]:
    """Return a recipe with every `auto` replaced, and notices for the user.

    An `auto` takes the value of `previous`, the recipe of the run to resume, or else the value that suits this device.
    Raises UsageError for a value that this device does not support.
    """

    def value(section: str, key: str) -> Any:
        own = getattr(getattr(recipe, section), key)
        return getattr(getattr(previous, section), key) if own == "auto" and previous else own

    runtime, weights = recipe.runtime, value("evaluation", "weights")
    # Compiled code chooses by itself which activations to keep, so checkpointing excludes compilation.
    wants_compile = False if runtime.compile == "auto" and runtime.grad_checkpointing else value("runtime", "compile")
    compiles, notice = resolve_compile(wants_compile, world.device)
    if weights == "auto":
        weights = "ema" if recipe.ema else "model"
    resolved = {
        "precision": resolve_precision(value("runtime", "precision"), world.device),
        "compile": compiles,
        "channels_last": value("runtime", "channels_last") is not False,
    }
    return recipe.changed(runtime=resolved, evaluation={"weights": weights}), [notice] if notice else []
