"""Refuse a Python without the packages with one line instead of a traceback. Each script imports this module first."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # A Python without packages finds the project here.

from seresnext.errors import UsageError
from seresnext.process.packages import require_packages

try:
    require_packages()
except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
