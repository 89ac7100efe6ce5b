"""Saves within whole runs: nothing claims a checkpoint that is not on the disk."""

from __future__ import annotations

import time

import pytest
from run_folders import status

from seresnext.checkpoint import store
from seresnext.process.stop_request import StopRequest
from seresnext.run.folder import RunFolder

SETTINGS = ["length=6st", "evaluation.every=6st", "logging.every=1st"]


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Record in order: begin and end of each write, and each state of status.json."""
    seen: list[tuple[str, object]] = []
    commit, write_status = store.commit, RunFolder.write_status

    def slow(folder, step, *content):
        seen.append(("begin", step))
        time.sleep(0.5)
        path = commit(folder, step, *content)
        seen.append(("end", step))
        return path

    def noted(self, state, step, reason=None):
        seen.append((state, step))
        write_status(self, state, step, reason)

    monkeypatch.setattr(store, "commit", slow)
    monkeypatch.setattr(RunFolder, "write_status", noted)
    return seen


@pytest.mark.full
def test_a_run_is_finished_when_its_last_checkpoint_is_on_the_disk(train_synthetic, happened, tmp_path):
    """Every write ends before the next write begins. Step 6 is saved before the validation, and then as the best."""
    train_synthetic(tmp_path / "run", [*SETTINGS, "checkpoint.every=1st"])
    writes = [(kind, step) for step in (*range(1, 7), 6) for kind in ("begin", "end")]
    assert happened == [("running", 0), *writes, ("finished", 6)]


def test_a_stop_request_during_a_write_waits_and_saves_again(train_synthetic, happened, monkeypatch, tmp_path):
    stop, commit = StopRequest(), store.commit

    def asked_meanwhile(folder, step, *content):
        stop.signal = "SIGTERM"  # like the handler of a signal
        return commit(folder, step, *content)

    monkeypatch.setattr(store, "commit", asked_meanwhile)
    run = train_synthetic(tmp_path / "run", [*SETTINGS, "checkpoint.every=2st"], stop)
    state, stopped_at = happened[-1]
    assert state == "preempted"
    assert 2 < stopped_at < 6
    assert happened[1:-1] == [("begin", 2), ("end", 2), ("begin", stopped_at), ("end", stopped_at)]
    assert store.newest_valid(run / "checkpoints").path == run / "checkpoints" / f"step-{stopped_at:08}.safetensors"
    train_synthetic(run, [*SETTINGS, "checkpoint.every=2st"])
    assert status(run)["state"] == "finished"
