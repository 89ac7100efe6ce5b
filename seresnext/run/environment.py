"""The machine of a run: the values of `auto` in a recipe there, the software, and differences that change last bits."""

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from seresnext.data.decode.regions import DECODER
from seresnext.distributed import World
from seresnext.errors import printable
from seresnext.recipe.schema import Recipe
from seresnext.runtime import resolve_compile, resolve_precision

_PACKAGES = ("seresnext", "torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors")
_PACKAGES += ("nvidia-nvimgcodec-cu13",)
# Fields and packages that may change the last bits of a number.
_BITS = ("world_size", "threads", "cpu", "cpu_capability", "gpu", "cuda", "cudnn", "python", "platform")
_BITS += ("seresnext", "torch", "torchvision", "numpy", "pillow", "git_commit")


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


def describe_environment(world: World) -> dict[str, Any]:
    """Return everything besides the recipe that the numbers of a run may depend on, as plain data."""
    on_gpu = world.device.type == "cuda"
    return {
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "gpu": torch.cuda.get_device_name(world.device) if on_gpu else None,
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "decoder": DECODER,
        "git_commit": _git_commit(),
    }


def compare_environments(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a line with the differences that may change the last bits of a number; None if there is none.

    `before` comes from a checkpoint. Fields that an older checkpoint lacks are not compared.
    """
    old, new = settings_of_bits(before), settings_of_bits(now)
    changed = [name for name in new if name in old and old[name] != new[name]]
    if not changed:
        return None
    changes = [f"{name} {printable(old[name], longest=80)} -> {printable(new[name], longest=80)}" for name in changed]
    return f"numbers may differ in their last bits, because this differs from the checkpoint: {'; '.join(changes)}"


def settings_of_bits(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields and packages that the last bits of a number may depend on."""
    packages = environment.get("packages")
    found = {**environment, **(packages if isinstance(packages, dict) else {})}
    if found.get("git_commit") is None:  # Another machine may have no git.
        found.pop("git_commit", None)
    return {name: found[name] for name in _BITS if name in found and isinstance(found[name], str | int | None)}


def _cpu_model() -> str | None:
    """Return the model of the processor, if the system gives the name."""
    with suppress(OSError):
        if match := re.search(r"\nmodel name\s*: (.+)", Path("/proc/cpuinfo").read_text(errors="replace")):
            return match[1].strip()
    return platform.processor() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of this code, with `-dirty` if the working tree has other changes."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
