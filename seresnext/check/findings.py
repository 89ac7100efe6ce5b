"""The findings of a check: verdicts with fixes, the table, and the failure at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from seresnext.errors import Failure
from seresnext.printable import for_terminal

SECTIONS = {"data": 3, "recipe": 2, "devices": 2, "disk": 1, "run": 1}
"""The sections of a check, in order, with the exit code of a failure."""

_WIDTH, _INDENT = 100, 30


@dataclass(frozen=True)
class Finding:
    """One row of the table: the measurement, the verdict with a fix, and the source of a rule.

    `values` are the numbers of `measured`, for programs.
    """

    section: str
    name: str
    verdict: Literal["ok", "warning", "failure"]
    measured: str
    fix: str = ""
    source: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class CheckFailed(Failure):
    """A check with failures, or with warnings under `--strict`. The exit code belongs to the first of them."""

    is_shared = True

    def __init__(self, bad: Sequence[Finding]) -> None:
        names = ", ".join(f"{finding.section}: {finding.name}" for finding in bad)
        super().__init__(f"the check found {len(bad)} problem{'s' * (len(bad) > 1)} ({names}); apply the fixes above")
        self.exit_code = SECTIONS[bad[0].section]


def judge(section: str, name: str, measured: str, problem: bool, fix: str, **more: Any) -> Finding:
    """Return a finding that is ok, or a warning with a fix if there is a problem."""
    return Finding(section, name, "warning" if problem else "ok", measured, fix if problem else "", **more)


def table(section: str, findings: Sequence[Finding]) -> str:
    """Return the findings of a section as text of at most 100 columns. Only a word that is longer is not broken."""
    lines = [section]
    for finding in findings:
        head = f"  {finding.verdict:<8} {finding.name}".ljust(_INDENT)
        rows = finding.measured.split("\n")
        rows += [f"{label}: {text}" for label in ("fix", "source") if (text := getattr(finding, label))]
        for row in rows:
            lines += textwrap.wrap(
                for_terminal(row).strip(),
                _WIDTH,
                initial_indent=head,
                subsequent_indent=" " * _INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
            head = " " * _INDENT
    return "\n".join(lines)
