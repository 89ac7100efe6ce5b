"""`scripts/check_gpu.sh` on a machine without a GPU: the Python that runs, the parts, and the report."""

import sys

import check_gpu
import pytest
import torch
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "check_gpu.sh"


@pytest.fixture
def main(monkeypatch, tmp_path):
    """`main(*words) -> report`: the parts are stand-ins, and `tests` fails."""

    def fails(check):
        assert not (tmp_path / "report.md").exists()
        return False, ["- FAILED tests/test_x.py"]

    def passes(check):
        assert "## tests: FAILED" in (tmp_path / "report.md").read_text()  # The report is written after each part.
        return True, ["a figure"]

    monkeypatch.setattr(check_gpu, "PARTS", {"tests": fails, "table": passes})

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--report", str(tmp_path / "report.md"), *words])
        check_gpu.main()

    return run


def test_the_report_has_each_part_and_a_failure_fails_the_check(main, tmp_path):
    with pytest.raises(check_gpu.CheckFailed, match="failed: tests; see "):
        main("--device", "cpu")
    report = (tmp_path / "report.md").read_text()
    assert f"torch {torch.__version__}" in report
    assert "- FAILED tests/test_x.py" in report
    assert "## table: passed, 0 s\n\na figure\n" in report


def test_mistakes(main, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in ((["--device", "cpu", "x"], "x is not a part; the parts are tests, table"), ([], "no CUDA")):
        with pytest.raises(check_gpu.UsageError, match=message):
            main(*words)


def test_the_given_python_runs_and_nothing_is_installed(run_command, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = run_command(["bash", SCRIPT, "--device", "cpu", "table"], env={"PYTHON": str(python)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(SCRIPT.with_suffix(".py")), "--device", "cpu", "table"]


@pytest.mark.runs
@pytest.mark.full
def test_all_parts_run_on_a_cpu(run_command, tmp_path):
    report = tmp_path / "report.md"
    command = ["bash", SCRIPT, "--device", "cpu", "--report", report]
    result = run_command(command, env={"PYTHON": sys.executable}, timeout=900)
    assert result.returncode == 0, result.output
    text = report.read_text()
    assert text.count(": passed, ") == 4
    assert all(f"| `{path.stem}` | " in text for path in (ROOT / "recipes").glob("*.yaml"))
    assert "| `seresnext26` | fp32 | no | " in text
