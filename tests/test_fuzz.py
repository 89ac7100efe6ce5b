"""`scripts/fuzz.py`: no damaged input escapes, and every kind of escape is found."""

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fuzz as script
import pytest
import torch
from fuzzing.harness import Reader, WrongResult, fuzz
from fuzzing.mutations import mutate_bytes

from seresnext.errors import DataError, UsageError
from seresnext.process.exit import run_script
from seresnext.runtime import tune_malloc


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        run_script(script.main)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.full
def test_nothing_escapes(monkeypatch, tmp_path, capsys):
    code = run(monkeypatch, "--inputs", 2200, "--json", tmp_path / "table.json")
    out, err = capsys.readouterr()
    assert code == 0, out + err
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert len(rows) == len(script.READERS) == 22
    # Some are accepted and some refused: the damage reaches the code behind the first check.
    assert all(row["inputs"] == 100 and row["accepted"] >= 2 and row["refused"] >= 2 for row in rows), out
    assert sum(row["refused"] for row in rows) > 600


SEED = {"file": bytes(range(64))}


def planted(read: Callable[[bytes], object]) -> Reader:
    """Return a reader with a fault. The reader refuses inputs with another beginning than the seed."""

    def read_file(folder: Path, files: Any) -> None:
        data = (folder / "file").read_bytes()
        assert data == files["file"]
        if data != SEED["file"]:
            read(data)
        if data[:8] != SEED["file"][:8]:
            raise DataError("file is damaged; get the file again")

    return Reader(
        lambda: [SEED], lambda draws, files, _: {"file": mutate_bytes(draws, files["file"])}, read_file, (DataError,)
    )


def raising(error: BaseException) -> Mock:
    return Mock(side_effect=error)


def wait_for_ever(_: bytes) -> None:
    time.sleep(60)


def take_all_memory(_: bytes) -> None:
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


FAULTS = {
    "another exception": (lambda data: [0][data.count(7)], "IndexError at"),
    "another exit code": (raising(UsageError("not the exit code of bad data")), "UsageError"),
    "no Exception": (raising(BaseException("a panic of a library")), "BaseException"),
    "no end": (wait_for_ever, "no end within 0.5 s"),
    "a crash": (lambda _: os.kill(os.getpid(), signal.SIGSEGV), "ended with signal 11"),
    "memory": (lambda _: b"1" * (200 << 20), "MiB of memory for an input of"),
    "memory without end": (take_all_memory, "MemoryError"),
    "an address": (raising(DataError(f"bad file {object()!r}")), "Python address"),
    "a long message": (raising(DataError("bad: " + "long" * 50_000)), "a message of"),
    "an empty message": (raising(DataError(" ")), "an empty message"),
    "control characters": (lambda _: print("\x1b[2J"), "control characters are printed"),
    "a warning": (lambda _: warnings.warn("odd", RuntimeWarning, stacklevel=1), "Python warns: RuntimeWarning"),
    "a wrong result": (raising(WrongResult("NaN is accepted")), "wrong result: NaN is accepted"),
}


@pytest.fixture(scope="module", autouse=True)
def free_memory():
    """Free memory of the parent, as after a training, which a child could take unnoticed."""
    tune_malloc(torch.device("cpu"))
    b"1" * (300 << 20)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    read, words = FAULTS[fault]
    row = fuzz("planted", planted(read), range(4), seconds=0.5 if read is wait_for_ever else 20)
    assert row.inputs == 4
    assert row.escapes, row
    assert all(words in escape.reason for escape in row.escapes), row
    assert 0 not in [escape.number for escape in row.escapes], "the seed itself is read well"


def test_a_reader_without_a_fault():
    row = fuzz("planted", planted(lambda _: None), range(200))
    assert (row.inputs, row.escapes) == (200, [])
    assert row.accepted > 10
    assert row.refused > 10
    # A quoted name with control characters is no escape: the commands print `\x1b` for such a character.
    assert fuzz("planted", planted(raising(DataError("bad name \x1b[2J"))), range(4)).escapes == []


def test_a_valid_input_that_is_refused():
    reader = replace(planted(lambda _: None), read=raising(DataError("file is damaged")))
    row = fuzz("planted", reader, range(3))
    assert [escape.number for escape in row.escapes] == [0]
    assert "a valid input is refused" in row.escapes[0].reason


def test_a_reader_that_always_hangs_is_given_up():
    row = fuzz("planted", planted(wait_for_ever), range(100), seconds=0.1)
    assert 1 < row.inputs < 10


def test_an_escape_is_reported_kept_and_read_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "READERS", {"planted": planted(FAULTS["another exception"][0])})
    words = ("--seed", 3, "--inputs", 40, "--keep", tmp_path / "kept", "--json", tmp_path / "table.json")
    assert run(monkeypatch, *words) == 1
    out, err = capsys.readouterr()
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    numbers = [number for number, _, _ in row["escapes"]]
    assert 0 < len(numbers) < 40
    assert f"planted {numbers[0]}: IndexError" in out
    assert f"{len(numbers)} of 40 inputs escaped" in err
    assert len(list((tmp_path / "kept").iterdir())) == len(numbers)
    kept = (tmp_path / "kept" / f"planted-{numbers[0]}" / "file").read_bytes()
    assert run(monkeypatch, "--seed", 3, "--only", "planted", "--number", numbers[0]) == 1
    out, _ = capsys.readouterr()
    assert f"file: {len(kept)} bytes: {kept!a}" in out
    assert "Traceback" in out
