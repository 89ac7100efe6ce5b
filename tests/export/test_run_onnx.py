"""The program of an ONNX folder, run by a Python that has onnxruntime, numpy and Pillow, and no torch."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import CLASSES, replace, rewrite_manifest

pytestmark = pytest.mark.full

PACKAGES = ("onnxruntime", "numpy", "PIL")
LIBRARIES = ("numpy.libs", "pillow.libs")  # shared libraries of the wheels


@pytest.fixture
def run_python(run_command: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`run_python(*words)`: a Python that has the three packages only."""
    for name in PACKAGES:
        package = Path(importlib.import_module(name).__path__[0])
        for source in (package, *(package.parent / library for library in LIBRARIES)):
            link = tmp_path / "packages" / source.name
            link.parent.mkdir(exist_ok=True)
            if source.exists() and not link.exists():
                link.symlink_to(source)
    path = {"PYTHONPATH": str(tmp_path / "packages")}
    return lambda *words: run_command([sys.executable, "-S", *words], env=path)


def test_the_program_verifies_and_predicts_without_torch(export: Callable[..., Path], run_python):
    folder = export("onnx")
    assert len((folder / "run.py").read_text().splitlines()) <= 100
    assert "No module named 'torch'" in run_python("-c", "import torch").output
    result = run_python(folder / "run.py", "--verify")
    assert result.returncode == 0, result.output
    assert "verified" in result.stdout
    expected = json.loads((folder / "golden" / "expected.json").read_text())["images"]
    images = [folder / "golden" / name for name in expected]
    result = run_python(folder / "run.py", *images, folder / "config.json")
    assert result.returncode == 3
    assert f"{folder / 'config.json'}: cannot identify" in result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith("  ")]
    assert lines == [str(path) for path in images]
    logits = np.array(expected["0.jpg"]["logits"])
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(logits.argmax())
    assert result.stdout.splitlines()[1] == f"  {100 * probabilities[best]:6.2f} %  {CLASSES[best]!r}"


def test_the_program_refuses_a_changed_file(copy: Callable[[str], Path], run_python):
    folder = copy("onnx")
    # The copy has links to the files of the export. `run.py` reads the folder of its own path.
    # The first byte of a JSON file is no JSON after the change.
    for name, place in (("golden/0.jpg", 999), ("manifest.json", 999), ("manifest.json", 0), ("config.json", 0)):
        before = (folder / name).read_bytes()
        content = bytearray(before)
        content[place] ^= 1
        replace(folder / name, bytes(content))
        result = run_python(folder / "run.py", "--verify")
        assert result.returncode == 1
        assert name in result.stderr
        assert "was changed" in result.stderr
        replace(folder / name, before)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["interpolation"] = "bilinear"
    replace(folder / "config.json", json.dumps(config).encode())
    rewrite_manifest(folder)
    result = run_python(folder / "run.py", "--verify")
    assert result.returncode == 1
    assert "the logits deviate" in result.stderr
