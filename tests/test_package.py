"""The installed package: the wheel, the public names, and every module without the extras."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import seresnext
from seresnext import cli
from seresnext.process.signals import StopRequest

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "aiohttp", "fsspec", "gcsfs", "huggingface_hub", "matplotlib", "nvidia.nvimgcodec", "onnx", "onnxruntime",
    "onnxscript", "s3fs", "sklearn",
)  # fmt: skip
TRAIN = ("-m", "seresnext", "train", "--recipe", "digits", "--device", "cpu", "--set", "length=2st")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel of this project and no other package."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("seresnext", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "target", source], check=True, capture_output=True, timeout=300)
    shutil.rmtree(source)
    return folder / "target"


def test_a_wheel_has_the_recipes_and_the_command(installed, run_command, tmp_path):
    env = {"PYTHONPATH": str(installed)}
    place = run_command([sys.executable, "-c", "import seresnext; print(seresnext.__file__)"], env=env, cwd=tmp_path)
    assert place.stdout.strip() == f"{installed}/seresnext/__init__.py"
    for name in ("digits", "seresnext101_strong"):  # The second one has bases.
        words = [sys.executable, "-m", "seresnext", "train", "--recipe", name, "--print-recipe"]
        shown = run_command(words, env=env, cwd=tmp_path)
        assert shown.returncode == 0, shown.output
        assert f"{installed.name}/seresnext/recipes/{name}.yaml:" in shown.stdout
    version = run_command([sys.executable, installed / "bin" / "seresnext", "--version"], env=env, cwd=tmp_path)
    assert version.stdout == f"seresnext {seresnext.__version__}\n"
    for file in ("py.typed", "report/page.html.jinja", "report/page.css", "report/page.js"):
        assert (installed / "seresnext" / file).exists(), file
    assert list(tmp_path.iterdir()) == []


@pytest.mark.runs
@pytest.mark.full
@pytest.mark.parametrize("launch", [(), ("-m", "seresnext.torchrun", "--standalone", "--nproc_per_node=2")])
def test_a_wheel_trains_in_an_empty_folder(installed, run_command, digits_folder, tmp_path, launch):
    words = [sys.executable, *launch, *TRAIN, "--data", digits_folder]
    result = run_command(words, env={"PYTHONPATH": str(installed)}, cwd=tmp_path, timeout=400)
    assert result.returncode == 0, result.output
    status = json.loads((tmp_path / "runs" / "digits" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 2)
    assert status["world_size"] == (2 if launch else 1)


def test_the_examples_of_the_package():
    assert doctest.testmod(seresnext).attempted > 4
    assert doctest.testmod(seresnext).failed == 0


def test_the_public_names():
    assert set(seresnext.__all__) == {name for names in seresnext._NAMES.values() for name in names}
    for name in seresnext.__all__:
        assert getattr(seresnext, name).__doc__ or name == "MODELS"
    with pytest.raises(AttributeError, match="nonsense"):
        seresnext.nonsense  # noqa: B018


IMPORTS = """
import importlib, pkgutil, sys

blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))  # Python refuses to import a module that is None.
import seresnext

assert not {"torch", "numpy"} & sys.modules.keys()
names = [module.name for module in pkgutil.walk_packages(seresnext.__path__, "seresnext.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_is_imported_without_the_extras(run_command):
    result = run_command([sys.executable, "-c", IMPORTS, *EXTRAS])
    assert result.returncode == 0, result.output
    assert int(result.stdout) > 100


@pytest.mark.parametrize(
    ("module", "words"), [("sklearn.datasets", "prepare digits --output {}/x"), ("matplotlib", "plot {}/run")]
)
def test_a_missing_extra_is_named(monkeypatch, capsys, tmp_path, module, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"event": "train", "epoch": 1, "loss": 1}\n')
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(words.format(tmp_path).split(), StopRequest()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'no {module}; run `pip install "seresnext[demo]"`' in line
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "metrics.jsonl"]
