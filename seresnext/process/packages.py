"""The packages that a command needs, checked before the first import of one."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from seresnext.errors import UsageError

LIGHT_PACKAGES = ("pydantic", "yaml")  # the packages that reading a recipe needs

PACKAGES = (*LIGHT_PACKAGES, "numpy", "PIL", "safetensors", "tensorboard", "torch", "torchvision", "tqdm")
"""The packages that all other commands need, without the extras."""


def require_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raise UsageError if this Python lacks one of the packages. Import no package."""
    if all(map(importlib.util.find_spec, names)):
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    fix = "in a clone, run `bash scripts/setup.sh` and `source .venv/bin/activate`; otherwise `pip install seresnext`"
    raise UsageError(f"{sys.executable} has no {', '.join(missing)}; {fix}")


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
