"""`status.json` is true at any time, also on a full disk, and a reader never finds a part."""

import errno
import json
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest

from seresnext.distributed import World
from seresnext.metrics.status import read_status, update_status, write_status
from seresnext.run.folder import resume_point


def write(folder, state, step=0, reason=None):
    write_status(folder, World(), state, step, reason)


def test_status_has_state_process_and_times(tmp_path):
    assert read_status(tmp_path) == {}
    write(tmp_path, "running", 12)
    write(tmp_path, "failed", 13, "out of memory")
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == read_status(tmp_path)
    started, updated = (datetime.fromisoformat(status.pop(name)) for name in ("started", "updated"))
    assert started <= updated
    assert timedelta(seconds=-2) < datetime.now(UTC) - updated < timedelta(seconds=60)
    state = {"state": "failed", "step": 13, "reason": "out of memory"}
    process = {"pid": os.getpid(), "host": socket.gethostname(), "world_size": 1}
    assert status == {**state, **process, **dict.fromkeys(("saved_step", "mirrored_step", "total_steps", "best"))}


def test_saved_step_total_and_best_stay_until_the_end(tmp_path):
    best = {"step": 10, "top1": 62.5, "top5": 75.0, "weights": "ema"}
    update_status(tmp_path, saved_step=10)
    update_status(tmp_path, step=3)
    assert read_status(tmp_path) == {}  # The folder has no run.
    write(tmp_path, "running", 0)
    started = read_status(tmp_path)["started"]
    update_status(tmp_path, step=12, saved_step=None, total_steps=100)
    update_status(tmp_path, saved_step=10, best=best)
    found = read_status(tmp_path)
    assert (found["step"], found["saved_step"], found["total_steps"], found["best"]) == (12, 10, 100, best)
    write(tmp_path, "failed", 13, "rank 1: gone")
    update_status(tmp_path, step=14)  # Another rank has failed: the step stays.
    update_status(tmp_path, saved_step=13)  # This write ends after another rank has failed.
    found = read_status(tmp_path)
    assert (found["state"], found["reason"], found["saved_step"]) == ("failed", "rank 1: gone", 13)
    assert (found["step"], found["total_steps"], found["best"], found["started"]) == (13, 100, best, started)


def test_two_threads_of_a_process_lose_no_field(tmp_path):
    """The training thread writes steps, and the checkpoint thread writes saves."""
    write(tmp_path, "running", 0)
    threads = [
        threading.Thread(target=lambda name=name: [update_status(tmp_path, **{name: n}) for n in range(200)])
        for name in ("step", "saved_step", "total_steps")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_status(tmp_path)
    assert [found[name] for name in ("step", "saved_step", "total_steps")] == [199] * 3


def test_the_point_of_a_resume(tmp_path):
    """The message has the newest checkpoint by step, or reports that there is none."""
    assert "No checkpoint" in resume_point(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "best.safetensors.superseded").touch()
    assert "No checkpoint" in resume_point(tmp_path)
    (checkpoints / "last.safetensors").touch()
    assert str(checkpoints / "last.safetensors") in resume_point(tmp_path)
    for step in (4, 100000000, 53):
        (checkpoints / f"step-{step:08d}.safetensors").touch()
    assert str(checkpoints / "step-100000000.safetensors") in resume_point(tmp_path)


@pytest.fixture
def refuse(monkeypatch):
    """`refuse(number)` lets every replacement of a file fail with this errno."""
    return lambda number: monkeypatch.setattr(Path, "replace", Mock(side_effect=OSError(number, os.strerror(number))))


def test_a_status_that_cannot_be_written_is_a_warning(tmp_path, refuse, capsys):
    write(tmp_path, "running", 3)
    refuse(errno.EIO)
    write(tmp_path, "failed", 4)
    assert "status.json cannot be written (Input/output error)" in capsys.readouterr().err
    assert read_status(tmp_path)["state"] == "running"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_it_is_written_over_the_old_one(tmp_path, refuse, capsys, number):
    write(tmp_path, "preempted", 3, "a reason that is longer than the next")
    refuse(number)
    write(tmp_path, "failed", 4, "short")
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["reason"]) == ("failed", "short")
    (tmp_path / "status.json").unlink()
    write(tmp_path, "failed", 4)
    assert "status.json cannot be written" in capsys.readouterr().err


def test_a_step_that_cannot_be_written_is_ignored(tmp_path, refuse, capsys):
    write(tmp_path, "running", 5)
    refuse(errno.ENOSPC)
    update_status(tmp_path, step=6)
    assert read_status(tmp_path)["step"] == 5
    assert capsys.readouterr().err == ""


def test_status_of_a_stranger_keeps_only_plain_values(tmp_path):
    """The next write repeats the values, so JSON must be able to hold each value."""
    deep = "[" * 500 + "]" * 500
    fields = f'"best": {{"step": {deep}}}, "saved_step": "x", "other": {deep}, "started": 3, "total_steps": 7'
    (tmp_path / "status.json").write_text(f'{{"state": "running", {fields}}}')
    assert read_status(tmp_path) == {"state": "running", "total_steps": 7}
    update_status(tmp_path, step=4)
    write(tmp_path, "failed", 4)
    assert (read_status(tmp_path)["total_steps"], read_status(tmp_path)["best"]) == (7, None)
    (tmp_path / "status.json").write_text("[]")
    assert read_status(tmp_path) == {}
