"""Refuse a Python without the needed packages with one line instead of a traceback. Each script imports this first."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # A Python without packages finds the project here.

from seresnext.errors import UsageError
from seresnext.process.packages import require_packages

try:
    require_packages()
except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


@contextmanager
def demo_extra() -> Iterator[None]:
    """Print one line and exit if an import within needs the extra `demo`."""
    try:
        yield
    except ModuleNotFoundError as error:
        fix = "install the extra `demo`: pip install -e '.[demo]'"
        print(f"error: {sys.executable} has no {error.name}; {fix}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
