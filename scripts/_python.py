"""Imported first by each script: a Python that lacks the packages is refused with one line, and not by a traceback."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # Where a Python that lacks packages finds this project all the same.

from seresnext.errors import UsageError, require_packages

try:
    require_packages()
except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
