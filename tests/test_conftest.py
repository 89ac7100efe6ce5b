"""The fixtures and options of tests/conftest.py: a left process fails a test, shards lose none."""

import sys
from types import SimpleNamespace
from unittest.mock import Mock

import conftest
import pytest
from conftest import needs
from launcher import PYTHON

ORPHANS = {
    "started": """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("left", child.pid)
""",
    "forked": """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
""",
}


@pytest.mark.parametrize("python", [sys.executable, PYTHON], ids=["new", "fork"])
@pytest.mark.parametrize("how", ORPHANS)
def test_a_left_process_fails_the_test_and_is_killed(start_command, tmp_path, python, how):
    (tmp_path / "script.py").write_text(ORPHANS[how])
    command = start_command([python, tmp_path / "script.py"])
    with pytest.raises(pytest.fail.Exception, match="left processes"):
        command.finish(timeout=10, grace=0.5)
    assert len(command.alive()) == 1
    command.kill()
    assert command.alive() == []


@pytest.mark.parametrize("count", [2, 5])
def test_shards_are_disjoint_and_complete(count):
    files = [f"tests/test_{number}.py" for number in range(20)]
    items = [SimpleNamespace(nodeid=f"{file}::test_{name}", keywords=()) for file in files for name in "ab"]
    shards = [list(items) for _ in range(count)]
    for part, shard in enumerate(shards, start=1):
        options = {"--shard": (part, count)}
        config = SimpleNamespace(getoption=lambda name, options=options: options.get(name, True), hook=Mock())
        conftest.pytest_collection_modifyitems(config, shard)
    assert all(shards)
    assert sorted(item.nodeid for shard in shards for item in shard) == sorted(item.nodeid for item in items)
    for shard in shards:  # Files stay whole.
        assert len({item.nodeid.partition("::")[0] for item in shard}) == len(shard) / 2


@pytest.mark.parametrize("ci", [False, True])
def test_what_a_machine_lacks_is_skipped_but_not_in_ci(monkeypatch, ci):
    monkeypatch.setenv("CI", "true" if ci else "")
    assert [needs(is_there, "needs it").args[0] for is_there in (False, True)] == [not ci, False]
