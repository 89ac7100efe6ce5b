"""How commands begin and end: streams that were closed, and no file in their place."""

from __future__ import annotations

import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
from seresnext.errors import replace_closed_streams

replace_closed_streams()
with Path(sys.argv[1]).open("w") as checkpoint:
    assert checkpoint.fileno() > 2
    print("said")
    print("said", file=sys.stderr, flush=True)
    checkpoint.write("numbers")
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ""])
def test_nothing_that_is_said_goes_into_a_file(run_command, tmp_path, redirection):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"{sys.executable} {tmp_path}/script.py {tmp_path}/checkpoint {redirection}"
    result = run_command(["bash", "-c", command])
    assert result.returncode == 0, result.output
    assert (tmp_path / "checkpoint").read_text() == "numbers"
    assert result.stdout == ("" if ">&-" in redirection.replace("2>&-", "") else "said\n")
    assert result.stderr == ("" if "2>&-" in redirection else "said\n")
