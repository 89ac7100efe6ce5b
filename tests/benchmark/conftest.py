"""Parts of scripts/bench.py, as a command and in process."""

import argparse
import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from seresnext.models import SENet


@pytest.fixture
def bench(run_command, tmp_path):
    """`bench(part, *words) -> figures, printed`: the command, whose exit code must be 0."""

    def run(*words):
        file = tmp_path / "figures" / "figures.json"
        result = run_command([sys.executable, "scripts/bench.py", *words, "--json", file])
        assert result.returncode == 0, result.output
        return json.loads(file.read_text()), result.stdout

    return run


@pytest.fixture
def measure() -> Callable[..., dict[str, Any]]:
    """`measure(module, *words) -> figures`: a part in process."""

    def run(module: ModuleType, *words: Any) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        return module.run(parser.parse_args([str(word) for word in words]))

    return run


@pytest.fixture
def narrow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **options: Any) -> SENet:
        return SENet((1, 1, 1, 1), cardinality=1, **options)

    monkeypatch.setattr("seresnext.models.registry.create_model", create)
