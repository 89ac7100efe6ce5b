"""The findings of a check: verdicts with fixes, and the table."""

import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from seresnext.errors import DataError, Failure, UsageError, for_terminal

SECTIONS = {"data": DataError, "recipe": UsageError, "devices": UsageError, "disk": Failure, "run": Failure}
"""The sections of a check, in order, with the error at the end if the first failure is there."""

_WIDTH, _INDENT = 100, 30
Verdict = Literal["ok", "warning", "failure"]


class Finding(NamedTuple):
    """A row of the table: the measurement, the verdict with a fix, the source of a rule, and numbers for programs."""

    section: str
    name: str
    verdict: Verdict
    measured: str
    fix: str
    source: str
    values: dict[str, Any]


def judge(
    section: str, name: str, measured: str, fix: str = "", verdict: Verdict = "warning", source: str = "", **values: Any
) -> Finding:
    """Return a finding with the verdict if there is something to fix, else a finding that is ok."""
    return Finding(section, name, verdict if fix else "ok", measured, fix, source, values)


def table(section: str, findings: Sequence[Finding]) -> str:
    """Return the findings of a section as text of at most 100 columns. Only a longer word makes a longer line."""
    wrapper = textwrap.TextWrapper(_WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
    lines = [section]
    for finding in findings:
        rows = finding.measured.split("\n")
        rows += [f"{label}: {text}" for label in ("fix", "source") if (text := getattr(finding, label))]
        text = "\n".join(wrapper.fill(for_terminal(row)) for row in rows)
        start = f"  {finding.verdict:<8} {finding.name}".ljust(_INDENT)
        lines.append(start + textwrap.indent(text, " " * _INDENT).lstrip())
    return "\n".join(lines)
