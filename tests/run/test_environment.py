"""The environment of a run, written as plain data and compared on resume, and every `auto` of a recipe there."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from seresnext.distributed import World
from seresnext.recipe.load import load_recipe
from seresnext.recipe.schema import Recipe
from seresnext.run.environment import compare_environments, describe_environment, resolve_auto

ROOT = Path(__file__).parents[2]


def test_the_environment_is_this_one():
    environment = describe_environment(World(0, 2))
    assert json.loads(json.dumps(environment)) == environment
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["packages"]["seresnext"]
    assert (environment["decoder"] == "nvimgcodec") == (environment["packages"]["nvidia-nvimgcodec-cu13"] is not None)
    assert (environment["world_size"], environment["gpu"], environment["cuda"]) == (2, None, None)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert environment["git_commit"] is None or environment["git_commit"].removesuffix("-dirty") == head


def test_a_changed_environment_is_one_line():
    """Fields that the checkpoint lacks, or that change no number, are not compared."""
    now = json.loads(json.dumps(describe_environment(World())))
    assert compare_environments(now, now) is None
    assert compare_environments({}, now) is None
    assert compare_environments({**now, "host": "other", "command": [], "cpus": 3, "git_commit": None}, now) is None
    packages = {**now["packages"], "torch": "2.9.9", "pydantic": "1"}
    line = compare_environments({**now, "threads": 77, "gpu": "H200", "packages": packages, "world_size": 8}, now)
    for words in ("threads 77 -> ", "torch 2.9.9 -> ", "gpu H200 -> None", "world_size 8 -> 1"):
        assert words in line
    assert "pydantic" not in line
    assert "cpu_capability" in now
    hostile = {"threads": "\x1b[2J" * 10**5, "packages": 3, "cpu": {"a": [[]]}, "git_commit": "x", "platform": None}
    line = compare_environments(hostile, {**now, "git_commit": "y"})
    assert len(line) < 1000
    assert line.isprintable()


def test_no_git_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment(World())["git_commit"] is None


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
        "seresnext.run.environment.resolve_compile", lambda requested, device: (requested in (True, "auto"), None)
    )
    assert resolved(seresnext50()).runtime.compile is True
    recipe = seresnext50("runtime.grad_checkpointing=true")
    for previous in (None, seresnext50("runtime.compile=true", "runtime.precision=fp32")):
        assert resolved(recipe, previous).runtime.compile is False
