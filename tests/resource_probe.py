"""Measures the memory and time of commands, in forks of tests/launcher.py. The imports before a fork do not count.

As a program, `resource_probe.py REPORT SECONDS SCRIPT ARGUMENTS...` runs a script, or `-c CODE`, with at most so many
seconds and 8 GB of address space beyond the imports, and writes the report.
"""

import resource
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import launcher


@dataclass(frozen=True)
class ProbeResult(launcher.Result):
    """The end of a command, with the CPU seconds, and the MB added at the peak."""

    megabytes: float


Probe = Callable[..., ProbeResult]


def assert_refused(result: ProbeResult, code: int = 4, megabytes: float = 100, seconds: float = 20) -> str:
    """Check that a command printed one short message without terminal control codes. Returns the message."""
    assert result.returncode == code, result.output[-2000:]
    message = result.stderr
    assert message.startswith("error: ")
    assert "Traceback" not in result.output
    assert all(character.isprintable() or character == "\n" for character in result.output)
    assert len(message) < 40_000
    assert result.megabytes < megabytes
    assert result.seconds < seconds
    return message


def _peak() -> int:
    """Return the peak memory of this process in bytes since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _run() -> None:
    if sys.argv[0] == "-c":
        exec(compile(sys.argv[1], "<command>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))  # As Python does.
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    report, limit, *sys.argv = sys.argv[1:]
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 30), resource.RLIM_INFINITY))
    signal.alarm(int(limit))
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before, begin = _peak(), _seconds()
    code = launcher.exit_code_of(_run)
    Path(report).write_text(f"{_seconds() - begin} {(_peak() - before) / 1e6}")
    sys.exit(code)
