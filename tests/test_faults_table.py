"""docs/faults.md: all cases, and tests that exist."""

import ast
import re

from conftest import ROOT

TABLE = (ROOT / "docs" / "faults.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", TABLE, re.MULTILINE)


def named_in(file):
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_case_is_there_once():
    assert [int(row[0]) for row in ROWS] == list(range(1, 67))


def test_every_case_names_tests_and_each_is_there():
    missing = []
    for number, _, _, shown in ROWS:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", shown)
        assert named, number
        missing += [f"{number}: {file}::{name}" for file, name in named if name not in named_in(file)]
    assert missing == []


def test_every_fault_test_is_named():
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests" / "runs").glob("test_faults_*.py"))
    assert len(files) >= 4
    unnamed = [f"{file}::{name}" for file in files for name in named_in(file) if f"{file}::{name}" not in TABLE]
    assert unnamed == []
