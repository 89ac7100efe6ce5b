"""Weights & Biases with the real library, offline: the files of a run and of its resume are parsed back."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from seresnext.metrics import tracker as module
from seresnext.metrics.tracker import attach

pytestmark = pytest.mark.full

_BLOCK, _HEADER = 32 << 10, 7


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a file of wandb.

    The file is a log of LevelDB after 7 bytes: blocks of 32 KiB with parts, each after a checksum (4 bytes), a length
    (2) and a type (1: whole, 2: first, 3: middle, 4: last)
    (https://github.com/google/leveldb/blob/main/doc/log_format.md).
    """
    data, place, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place < len(data):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def train(step):
    return {"event": "train", "step": step, "epoch": step / 10, "loss": 3.0 - step, "data_wait": 0.1}


def content(path):
    """Return the run record, the points of the training loss, the artifacts and the exit code of a file."""
    run, points, artifacts, code = None, [], [], None
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or record.run
        elif kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            points += [(row["_step"], row["train/loss"])] if "train/loss" in row else []
        elif kind == "artifact":
            artifacts.append((record.artifact.name, record.artifact.type))
        elif kind == "exit":
            code = record.exit.exit_code
    return run, points, artifacts, code


def test_each_start_has_a_file_with_the_same_run(tracked, follow):
    said = [*follow("wandb", train(1), train(2), state="failed"), *follow("wandb", train(3), state="finished")]
    attach(tracked, tracked / "report")
    (known,) = {json.loads((tracked / "trackers" / "wandb.json").read_text())["id"]}
    files = sorted(tracked.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [path.name for path in files] == [f"run-{known}.wandb"] * 3
    assert len(said) == 2
    assert all(line.startswith("wandb: offline, wandb sync ") for line in said)
    (first, points, artifacts, code), (second, more, _, end), (third, none, page, _) = map(content, files)
    assert {run.run_id for run in (first, second, third)} == {known}
    assert (first.display_name, first.project) == ("first", "seresnext")
    assert (points, more, none) == ([(1, 2.0), (2, 1.0)], [(3, 0.0)], [])
    assert (code, end) == (1, 0)
    assert artifacts == [(f"{known}-recipe", "run"), (f"{known}-environment", "run")]
    assert (f"{known}-report", "report") in page
    config = {item.key or "/".join(item.nested_key): item.value_json for item in first.config.update}
    assert list(tracked.glob("wandb/offline-run-*/files/media/images/train/first_batch*.png"))
    keys = [
        item.key or "/".join(item.nested_key)
        for record in records(files[0])
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    ]
    assert {"optimizer.lr", "model.name"} <= {*config, *keys}


def test_an_unknown_key_of_the_server_is_one_warning(follow, monkeypatch):
    """Nothing asks a user, and nothing waits for a network."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(module, "PATIENCE", 8.0)
    said = follow("wandb", train(1), state="finished")
    assert len(said) == 1
    assert said[0].startswith("warning: ")
