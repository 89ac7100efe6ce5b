"""The packages that a command needs, checked before the first import of one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from seresnext.errors import UsageError

LIGHT_PACKAGES = ("pydantic", "yaml")
"""The packages that reading a recipe needs."""

PACKAGES = (*LIGHT_PACKAGES, "numpy", "PIL", "safetensors", "tensorboard", "torch", "torchvision", "tqdm")
"""The packages that all other commands need, without the extras."""

_OLDEST_PYTHON = (3, 11)


def require_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raise UsageError if this Python is too old, or lacks one of the packages. Import no package."""
    is_old = sys.version_info < _OLDEST_PYTHON
    if not is_old and all(map(importlib.util.find_spec, names)):
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    found = f"is Python {sys.version.split()[0]}, older than 3.11" if is_old else f"has no {', '.join(missing)}"
    venv = Path(__file__).parents[2] / ".venv"
    activate = venv / "bin" / "activate"
    is_other = activate.exists() and Path(sys.prefix).resolve() != venv.resolve()
    fix = f"run `source {activate}`" if is_other else "run `bash scripts/setup.sh`, or `pip install seresnext`"
    raise UsageError(f"{sys.executable} {found}; {fix}")


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import the packages of an extra in this block. Raises UsageError with the command that installs the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f'{sys.executable} has no {error.name}; run `pip install "seresnext[{name}]"`') from None


def require_extra(name: str, *packages: str) -> None:
    """Raise UsageError if a package of an extra is missing. Import no package."""
    with extra(name):
        for package in packages:
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
