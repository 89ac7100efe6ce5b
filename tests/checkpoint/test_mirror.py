"""The mirror of a run: the owner of an address, the checkpoints that a start fetches, and uploads to a bad store."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import until
from mirrors import OTHER, RUN, add, content, own, save

from seresnext.checkpoint import mirror as mirror_module
from seresnext.checkpoint import store
from seresnext.checkpoint.mirror import Mirror
from seresnext.checkpoint.mirror_files import MirrorFiles
from seresnext.errors import CheckpointError, Failure, UsageError


class Made(Mirror):
    """A mirror with the lines that the mirror has printed, and the steps of the uploads."""

    def __init__(self, address: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(address, folder)
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.report, self.on_upload = self.lines.append, self.steps.append

    def start(self, step: int = 0, **options: bool) -> Made:
        """Look and claim, as an accepted start does."""
        self.look(**{"starts_over": False, "adopts": True, **options})
        self.claim(step, None)
        return self

    def add(self, path: Path, best: int | None = None) -> None:
        self.put(path, int(store.verify(path)["step"]), best=best, keep=3, keep_every=None)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seresnext.remote.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("seresnext.remote.LONGEST_PAUSE", 0.05)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "mirror")


@pytest.fixture
def make(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Made]]:
    """`make(name="run", address=place)`: the mirror of a run folder, closed at the end of the test."""
    made: list[Made] = []

    def make(name: str = "run", address: str = place) -> Made:
        made.append(Made(address, tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one._gives_up = True
        monkeypatch.setattr(mirror_module, "END_SECONDS", 0)
        one.close()


# ------------------------------------------------------------------------------------------------ the run of an address


def test_the_run_of_a_folder_keeps_its_id(make, place: str):
    run = json.loads((make().start()._folder / "mirror.json").read_text())["run"]
    make().start(step=3)
    owner = make("fresh").start(step=3)._owner  # A fresh folder adopts the run.
    assert (owner.number, owner.run, owner.starts) == (3, run, [[1, 0], [2, 3], [3, 3]])
    owner = make(address=f"{place}2").start(step=5)._owner  # The run takes the id along to another address.
    assert (owner.run, owner.starts) == (run, [[1, 5]])


def test_another_run_is_refused_unless_it_starts_over(make, tmp_path: Path):
    first = make().start()
    save(tmp_path / "run", 1)
    make("other", address=str(tmp_path / "elsewhere")).start()
    for name, adopts in (("other", True), ("a fork", False)):
        with pytest.raises(UsageError, match=r"belongs to another run \(.*started by process"):
            make(name).look(starts_over=False, adopts=adopts)
    assert first._files.newest_owner() == first._owner  # A refused start changes nothing.
    other = make("other").start(starts_over=True)
    assert (other._owner.number, other._owner.starts) == (2, [[2, 0]])
    with pytest.raises(UsageError, match="belongs to another run"):
        make().start()


def test_a_run_that_came_since_the_look_is_refused(make, place: str):
    mirror = make()
    mirror.look(starts_over=False, adopts=True)
    own(place, OTHER)
    with pytest.raises(UsageError, match="belongs to another run"):
        mirror.claim(0, None)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (OSError("reset by s3://x"), Failure, "cannot be used, in 5 attempts: reset by .*checkpoint.mirror=null"),
        (OSError(28, "No space left on device"), Failure, "cannot be used, in 5 attempts: .*No space left on device"),
        (PermissionError("denied"), UsageError, "cannot be used: denied; check the address and the credentials"),
    ],
)
def test_a_store_that_cannot_be_reached_at_the_start(make, monkeypatch, answer: Exception, error, message: str):
    newest_owner = Mock(side_effect=answer)
    monkeypatch.setattr(MirrorFiles, "newest_owner", newest_owner)
    with pytest.raises(error, match=message):
        make().start()
    assert newest_owner.call_count == (5 if error is Failure else 1)


# ------------------------------------------------------------------------------------------------ fetching


@pytest.fixture
def filled(tmp_path: Path, place: str) -> dict[int, Path]:
    """A mirror with the checkpoints of three steps, and the local files by step."""
    files, owner = own(place)
    (tmp_path / "metrics.jsonl").write_text("one line\n")
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "mlflow.json").write_text('{"id": "abc", "sent": 9}')
    paths = {step: save(tmp_path / "there", step) for step in (10, 20, 30)}
    for number, path in enumerate(paths.values(), 1):
        add(files, owner, number, path, tmp_path)
    return paths


def damage(place: str, step: int) -> None:
    (path,) = Path(place, RUN).glob(f"step-{step:08d}-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])


def fetch(made: Made, beyond: int = -1) -> Path | None:
    made.look(starts_over=False, adopts=True)
    return made.fetch(made._folder, beyond)


def test_the_newest_is_fetched_with_the_metrics(make, filled, tmp_path: Path):
    made = make()
    path = fetch(made)
    assert path == tmp_path / "run" / "step-00000030.safetensors"
    assert path.read_bytes() == filled[30].read_bytes()
    assert made.lines == [f"fetched the checkpoint of step 30 from {tmp_path / 'mirror'}"]
    made.claim(30, path)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "one line\n"
    assert json.loads((tmp_path / "run" / "trackers" / "mlflow.json").read_text()) == {"id": "abc", "sent": 9}
    made.close()
    assert made.steps == []  # The mirror has the checkpoint.


def test_damaged_ones_are_passed_over(make, filled, place: str, tmp_path: Path):
    damage(place, 30)
    made = make()
    assert fetch(made).name == "step-00000020.safetensors"
    assert "damaged checkpoint of step 30" in made.lines[0]
    damage(place, 20)
    damage(place, 10)
    with pytest.raises(CheckpointError, match=r"none of the 3 checkpoints in .* is valid"):
        fetch(make("other"))
    assert list((tmp_path / "other").iterdir()) == []
    assert fetch(make("run"), beyond=20) is None  # The run folder has a valid one.


def test_only_a_newer_one_is_fetched(make, filled):
    assert fetch(make(), beyond=30) is None
    assert fetch(make(), beyond=29).name == "step-00000030.safetensors"


def test_an_upload_under_another_step_is_damaged(make, filled, place: str):
    """The digest of the manifest is right, the step in the file is not."""
    for path in Path(place, RUN).glob("step-00000030-*"):
        path.rename(path.with_name(path.name.replace("30-", "31-")))
    (manifest,) = Path(place, RUN).glob("step-00000031-*.json")
    manifest.write_text(manifest.read_text().replace("00000030", "00000031"))
    made = make()
    assert fetch(made).name == "step-00000020.safetensors"
    assert "another step" in made.lines[0]


# ------------------------------------------------------------------------------------------------ uploads


def test_each_checkpoint_is_uploaded_also_after_a_kill_of_the_upload(make, tmp_path: Path):
    made = make().start()
    made.add(save(tmp_path, 1))
    until(lambda: made._process)
    os.kill(made._process.pid, signal.SIGKILL)
    until(lambda: made.steps == [1])
    made.add(save(tmp_path, 2))
    made.close()
    files, owner = made._files, made._owner
    assert [content(files, owner.run, one) for one in files.uploads(owner)] == [
        (tmp_path / f"step-0000000{step}.safetensors").read_bytes() for step in (1, 2)
    ]
    assert made.lines[-1].endswith("mirror has the checkpoint of step 2")


class Uploads:
    """A stand-in for the process: uploads wait until the test gives the result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.may_end = threading.Semaphore(0)
        monkeypatch.setattr(Mirror, "_upload", self._upload)

    def _upload(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        self.may_end.acquire()
        return self.results.pop(0) if self.results else {"uploaded": True}

    @property
    def steps(self) -> list[int]:
        return [request["step"] for request in self.requests]


def test_when_behind_the_newest_comes_first_and_then_the_best(make, tmp_path: Path, monkeypatch):
    uploads, made = Uploads(monkeypatch), make().start()
    made.add(save(tmp_path, 1), best=1)
    until(lambda: uploads.requests)
    for step in (2, 3, 4):
        made.add(save(tmp_path, step), best=3)
    uploads.may_end.release(2)
    made.close()
    assert uploads.steps == [1, 4]
    assert [request["best_path"] for request in uploads.requests] == [None, str(tmp_path / "best.safetensors")]


def test_an_outage_is_reported_once(make, tmp_path: Path, monkeypatch):
    uploads, made = Uploads(monkeypatch), make().start()
    failure = {"uploaded": False, "problem": "reset", "is_final": False}
    uploads.results = [*[failure] * 6, {"uploaded": True}, {**failure, "is_final": True}]
    uploads.may_end.release(100)
    made.add(save(tmp_path, 1))
    until(lambda: made.steps == [1])
    assert len(uploads.requests) == 7
    assert [line.split()[0] for line in made.lines] == ["warning:", "uploads"]
    made.add(save(tmp_path, 2))
    until(lambda: made.steps == [1, 2])
    assert len(made.lines) == 4  # An outage that another attempt does not end is reported at once.
    assert "lacks the checkpoint of step 1: reset; training continues" in made.lines[0]
    uploads.results = [*[failure] * 3, {**failure, "problem": "newer owner", "is_final": True, "is_fenced": True}]
    made.add(save(tmp_path, 3))
    until(lambda: not made._thread.is_alive())  # An owner that comes during an outage is reported, too.
    assert [line.rpartition(": ")[2] for line in made.lines[4:]] == [
        "reset; training continues", "newer owner; training continues",
    ]  # fmt: skip


def test_old_ones_that_cannot_be_removed_are_reported_once_and_hide_no_outage(make, tmp_path: Path, monkeypatch):
    uploads, made = Uploads(monkeypatch), make().start()
    denied = {"uploaded": True, "problem": "denied", "is_final": True}
    uploads.results = [denied, denied, {"uploaded": False, "problem": "reset", "is_final": True}]
    uploads.may_end.release(9)
    for step in (1, 2, 3):
        made.add(save(tmp_path, step))
        until(lambda step=step: made.steps and made.steps[-1] == step)
    assert [line.split(": ")[-1] for line in made.lines] == [
        "denied; training continues", "reset; training continues", f"uploads to {made.address} succeed again",
    ]  # fmt: skip


def test_a_checkpoint_that_is_removed_while_it_waits_is_dropped(make, tmp_path: Path, monkeypatch):
    """The attempts count nevertheless: the next failure is the third."""
    uploads, made = Uploads(monkeypatch), make().start()
    uploads.results = [{"uploaded": False, "problem": "reset", "is_final": False}] * 4
    path = save(tmp_path, 1)
    made.add(path)
    uploads.may_end.release(2)
    until(lambda: len(uploads.requests) == 3)
    path.unlink()
    made.add(save(tmp_path, 2))
    uploads.may_end.release(9)
    until(lambda: made.steps == [2])
    assert "lacks the checkpoint of step 2: reset" in made.lines[0]
    assert uploads.steps == [1, 1, 1, 2, 2]


def test_a_fenced_start_stops_uploading(make, tmp_path: Path, place: str):
    made = make().start()
    own(place, made._run, step=0)
    for step in (1, 2):
        made.add(save(tmp_path, step))
        until(lambda: not made._thread.is_alive())
    made.close()
    (line,) = made.lines
    assert "has a newer owner, process" in line
    assert "training continues" in line


@pytest.fixture
def silence() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


@pytest.mark.full
def test_a_store_that_does_not_answer_delays_the_end_for_a_bounded_time(
    make, tmp_path: Path, bucket: str, silence: socket.socket, monkeypatch
):
    """A put returns at once, and the process that waits for an answer is killed."""
    made = make(address=f"{bucket}/silent").start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silence.getsockname()[1]}")
    monkeypatch.setattr(mirror_module, "END_SECONDS", 0.5)
    began = time.monotonic()
    made.add(save(tmp_path, 1))
    assert time.monotonic() - began < 10
    connection, _ = silence.accept()
    began = time.monotonic()
    with connection:
        made.close()
    assert 1 < time.monotonic() - began < 30
    assert made._process.wait(5) == -signal.SIGKILL
    assert "lacks the checkpoint of step 1, since the upload did not end within 2 s" in made.lines[-1]


@pytest.mark.full
def test_a_transfer_that_takes_too_long_is_ended(
    make, tmp_path: Path, bucket: str, silence: socket.socket, monkeypatch
):
    made = make(address=f"{bucket}/slow").start()
    monkeypatch.setattr(mirror_module, "UPLOAD_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silence.getsockname()[1]}")
    made.add(save(tmp_path, 1))
    until(lambda: made.lines, 60)
    assert "no end of the transfer within 1 s; training continues" in made.lines[0]
    monkeypatch.undo()
    made.add(save(tmp_path, 2))
    until(lambda: 2 in made.steps, 60)  # An attempt with the first may succeed before.
    assert made.lines[1].endswith("succeed again")
