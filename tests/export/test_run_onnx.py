"""The program of an ONNX folder, run by a Python that has onnxruntime, numpy and Pillow, and no torch."""

from __future__ import annotations

import importlib.util
import json
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exports import CLASSES, replace, rewrite_manifest

pytestmark = pytest.mark.full

PACKAGES = ("onnxruntime", "numpy", "PIL")
LIBRARIES = ("numpy.libs", "pillow.libs")  # shared libraries of the wheels


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with links to the three packages."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for source in (package, *(package.parent / library for library in LIBRARIES)):
            link = folder / "lib" / version / "site-packages" / source.name
            if source.exists() and not link.exists():
                link.symlink_to(source)
    return folder / "bin" / "python"


def test_the_program_is_short(export: Callable[..., Path]):
    assert len((export("onnx") / "run.py").read_text().splitlines()) <= 100


def test_the_program_verifies_and_predicts_without_torch(export: Callable[..., Path], python: Path, run_command):
    folder = export("onnx")
    clean = {"PYTHONPATH": ""}
    assert "No module named 'torch'" in run_command([python, "-c", "import torch"], env=clean).output
    result = run_command([python, folder / "run.py", "--verify"], env=clean)
    assert result.returncode == 0, result.output
    assert "verified" in result.stdout
    expected = json.loads((folder / "golden" / "expected.json").read_text())["images"]
    images = [folder / "golden" / name for name in expected]
    result = run_command([python, folder / "run.py", *images, folder / "config.json"], env=clean)
    assert result.returncode == 3
    assert f"{folder / 'config.json'}: cannot identify" in result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith("  ")]
    assert lines == [str(path) for path in images]
    logits = np.array(expected["0.jpg"]["logits"])
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(logits.argmax())
    assert result.stdout.splitlines()[1] == f"  {100 * probabilities[best]:6.2f} %  {CLASSES[best]!r}"


def test_the_program_refuses_a_changed_file(copy: Callable[[str], Path], python: Path, run_command):
    folder = copy("onnx")
    # The copy has links to the files of the export. `run.py` reads the folder of its own path.
    # The first byte of a JSON file is no JSON after the change.
    for name, place in (("golden/0.jpg", 999), ("manifest.json", 999), ("manifest.json", 0), ("config.json", 0)):
        before = (folder / name).read_bytes()
        content = bytearray(before)
        content[place] ^= 1
        replace(folder / name, bytes(content))
        result = run_command([python, folder / "run.py", "--verify"], env={"PYTHONPATH": ""})
        assert result.returncode == 1
        assert name in result.stderr
        assert "was changed" in result.stderr
        replace(folder / name, before)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["interpolation"] = "bilinear"
    replace(folder / "config.json", json.dumps(config).encode())
    rewrite_manifest(folder)
    result = run_command([python, folder / "run.py", "--verify"], env={"PYTHONPATH": ""})
    assert result.returncode == 1
    assert "the logits deviate" in result.stderr
