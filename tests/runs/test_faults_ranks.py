"""A rank that is killed, freezes or fails: the others end soon, name it, and the run goes on."""

from __future__ import annotations

import pytest
from conftest import ROOT
from faults import Fault
from run_folders import status

pytestmark = pytest.mark.runs


def one_error(result, *words):
    """Our program said what is wrong once, with these words, and printed no traceback of its own."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, result.output
    assert [word for word in words if word not in errors[0]] == [], result.output
    assert f"{ROOT}/seresnext" not in result.stderr, result.output


def test_a_killed_rank_is_named(faulty, assert_goes_on, tmp_path):
    run = tmp_path / "run"
    result = faulty(run, Fault("reduce:5", "kill", rank=1), timeout=40)
    assert result.returncode != 0
    one_error(result, "rank 1 no longer answers, last heard of in")
    assert status(run)["state"] == "failed"
    assert "rank 1 no longer answers" in status(run)["reason"]
    assert_goes_on(run)


def test_a_frozen_rank_is_named(faulty, assert_goes_on, tmp_path):
    run = tmp_path / "run"
    result = faulty(run, Fault("step:5", "stop", rank=1), more=["--set", "runtime.collective_timeout=5"], timeout=60)
    one_error(result, "rank 1 no longer answers, last heard of in")
    assert status(run)["state"] == "failed"
    assert_goes_on(run)
