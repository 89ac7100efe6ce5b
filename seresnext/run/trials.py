"""What a run tries out before it starts: which micro-batch fits in memory, and what runs fastest on this machine."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from seresnext import errors
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.data.pipeline import stand_in_batch
from seresnext.distributed import World
from seresnext.errors import RecipeError, UsageError
from seresnext.models.registry import build_model
from seresnext.recipe.load import recipe_from_values
from seresnext.runtime import PRECISIONS, resolve_compile
from seresnext.training.ema import Ema
from seresnext.training.loss import build_loss
from seresnext.training.optimizer import build_optimizer
from seresnext.training.step import StepSettings, TrainingStep

# Part of a GPU's memory that a trial leaves free, for what it does not have: validation, collectives, fragments.
_HEADROOM = 0.06
# The first steps compile, choose kernels and get memory; of the others the fastest counts, as least disturbed.
_WARM_UP_STEPS, _TIMED_STEPS = 2, 5


def choose_by_trial(
    values: dict[str, Any], asked: dict[str, Any], world: World, say: Callable[[str], None]
) -> dict[str, Any]:
    """The values of a recipe with `batch.micro_size`, memory format and compilation settled by trying them here.

    `asked` are the values before any `auto` was settled. All ranks choose the same. Nothing is left of the trials but
    the choice: they have a model, an optimizer and images of their own, and the caller seeds torch's generators
    afterwards. Raises UsageError when nothing fits.
    """
    measure = values["runtime"]["measure"]
    values = _with(values, "runtime", measure=False)  # Done, says the recipe that is stored.
    if values["batch"]["micro_size"] == "auto":
        values = _choose_micro_size(values, world, say)
    return _choose_fastest(values, asked, world, say) if measure else values


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The last of some ascending sizes that fits, by halving the choice, where all below one that fits do so, too."""
    low, high = 0, len(sizes)  # Those before `low` fit, those from `high` on do not.
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None


def micro_sizes(values: dict[str, Any], world_size: int) -> list[int]:
    """The powers of two that the images of a rank can be divided by, and that no other key of the recipe forbids."""
    share = values["batch"]["global_size"] // world_size
    powers = itertools.takewhile(lambda size: share % size == 0, (2**power for power in itertools.count()))
    return [size for size in powers if _is_allowed(_with(values, "batch", micro_size=size))]


def out_of_memory(action: Callable[[], object]) -> bool:
    """Run an action and say whether memory was too small for it. What it held is given back."""
    failed = False
    try:
        action()
    except Exception as error:
        if errors.out_of_memory(error) is None:
            raise
        failed = True
    # Not in the clause above, where the error still holds the action's frames.
    _release()
    return failed


def _choose_micro_size(values: dict[str, Any], world: World, say: Callable[[str], None]) -> dict[str, Any]:
    sizes = micro_sizes(values, world.size)
    if not sizes:
        raise UsageError(
            "batch.micro_size: auto tries powers of two, and none that divides the "
            f"{values['batch']['global_size'] // world.size} images of a process is one that the recipe allows; change "
            "batch.global_size, or give batch.micro_size as a number"
        )
    fitting = largest_that_fits(sizes, lambda size: _fits(_with(values, "batch", micro_size=size), world))
    size = min(found or 0 for found in world.gather(fitting))
    if size == 0:
        raise UsageError(
            f"batch.micro_size: auto found that not even micro-batches of {sizes[0]} fit in the memory of "
            f"{world.device}; lower data.image_size, or set runtime.grad_checkpointing=true"
        )
    replicas = values["batch"]["global_size"] // size
    say(f"batch.micro_size: auto is {size}, the largest power of two that fits; {replicas} micro-batches a step")
    return _with(values, "batch", micro_size=size)


def _choose_fastest(
    values: dict[str, Any], asked: dict[str, Any], world: World, say: Callable[[str], None]
) -> dict[str, Any]:
    wanted, settled = asked["runtime"], values["runtime"]
    layouts = (True, False) if wanted["channels_last"] == "auto" else (settled["channels_last"],)
    compiles = wanted["compile"] == "auto" and not wanted["grad_checkpointing"]
    compiles = compiles and all(world.gather(resolve_compile(True, world.device)[0]))
    candidates = [
        {"channels_last": channels_last, "compile": compiled}
        for compiled in ((False, True) if compiles else (settled["compile"],))
        for channels_last in layouts
    ]
    times = []
    for candidate in candidates:
        own = seconds_per_step(_with(values, "runtime", **candidate), world)
        times.append(max(world.gather(own)))  # A step takes as long as on the slowest rank.
        words = ", ".join(f"{key} {str(value).lower()}" for key, value in candidate.items())
        say(f"runtime.measure: {words}: " + (f"{times[-1]:.4g} s a step" if times[-1] < math.inf else "out of memory"))
    if min(times) == math.inf:
        raise UsageError("runtime.measure: no candidate fits in memory; set batch.micro_size lower")
    best = candidates[times.index(min(times))]
    say("runtime.measure: chosen " + ", ".join(f"{key} {str(value).lower()}" for key, value in best.items()))
    return _with(values, "runtime", **best)


def seconds_per_step(values: dict[str, Any], world: World) -> float:
    """How long one micro-batch of training takes on this rank; infinity where it does not fit in memory."""
    times: list[float] = []
    failed = out_of_memory(lambda: times.extend(_time_steps(values, world, _WARM_UP_STEPS + _TIMED_STEPS)))
    return math.inf if failed else min(times[_WARM_UP_STEPS:])


def _fits(values: dict[str, Any], world: World) -> bool:
    """Whether training by a recipe fits beside what a trial lacks."""

    def train() -> None:
        ballast = _ballast(values, world)
        _time_steps(values, world, steps=2)
        del ballast

    return not out_of_memory(train)


def _ballast(values: dict[str, Any], world: World) -> list[torch.Tensor]:
    """As much of a GPU's memory as a trial leaves to others: some headroom, and the buckets of DDP."""
    headroom = int(_HEADROOM * torch.cuda.get_device_properties(world.device).total_memory)
    ballast = [torch.empty(headroom, dtype=torch.uint8, device=world.device)]
    if world.size > 1:
        with torch.device("meta"):
            model = build_model(recipe_from_values(values, "a trial").model)
        ballast += [torch.empty(parameter.shape, device=world.device) for parameter in model.parameters()]
    return ballast


def _time_steps(values: dict[str, Any], world: World, steps: int) -> list[float]:
    """Seconds of steps of one micro-batch on this rank alone, as a recipe has it, with images that mean nothing."""
    recipe = recipe_from_values(values, "the resolved recipe")
    device, precision = world.device, PRECISIONS[recipe.runtime.precision]
    model = build_model(recipe.model)
    model.freeze(recipe.model.frozen)
    model.grad_checkpointing = recipe.runtime.grad_checkpointing
    precision.place(model, device, recipe.runtime.channels_last is True)
    step = TrainingStep(
        model,
        build_optimizer(model, recipe.optimizer),
        loss=build_loss(recipe.loss),
        settings=StepSettings(
            replicas=1,
            seed=recipe.runtime.seed,
            precision=precision,
            compiled=recipe.runtime.compile is True,
            clip_norm=recipe.optimizer.clip_norm,
        ),
        world=World(device=device),
        ema=Ema(model, recipe.ema.decay, recipe.ema.warmup) if recipe.ema else None,
    )
    images, labels = stand_in_batch(recipe, device)
    ahead = images.clone()  # The prefetched batch.
    times = []
    for number in range(steps):
        started = time.perf_counter()
        batch = DeviceBatch(images, labels, number, 0, 0.0)
        step(iter([batch]), step=number, lr=1e-3, stop=False).result()  # Waits for the device.
        times.append(time.perf_counter() - started)
    del ahead
    return times


def _with(values: dict[str, Any], section: str, **changes: Any) -> dict[str, Any]:
    return {**values, section: {**values[section], **changes}}


def _is_allowed(values: dict[str, Any]) -> bool:
    try:
        recipe_from_values(values, "a trial")
    except RecipeError:
        return False
    return True


def _release() -> None:
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
