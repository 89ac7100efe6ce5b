"""`metrics.jsonl`: the file stays valid after a crash, and errors never end a run."""

import json
import math
import os
import resource
from unittest.mock import Mock

import pytest

from seresnext.errors import UsageError
from seresnext.metrics.jsonlines import JsonLines, check_metrics
from seresnext.metrics.sink import RunStart


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def start(tmp_path, warnings):
    """`start(step, evaluated, logged)`: open the file for a run that starts there. By default all lines stay."""

    def start(step=10**9, evaluated=0, logged=0):
        return JsonLines(RunStart(tmp_path, step, evaluated, logged, warnings.append))

    return start


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(step, **fields):
    return {"event": "train", "step": step, "epoch": step / 10, **fields}


def fill(path, steps):
    """Write a `train` event for each positive step, a validation for each negative step, and garbage for None."""
    events = [{"event": "train" if step > 0 else "validate", "step": abs(step)} if step else None for step in steps]
    path.write_text("".join((json.dumps(event) if event else "garbage") + "\n" for event in events))


def steps(path):
    return [event["step"] * (1 if event["event"] == "train" else -1) for event in read(path)]


def test_floats_keep_every_digit_and_lines_are_appended_at_once(start, path):
    events = [train(3, loss=0.1 + 0.2, lr=1e-320, images_per_second=1 / 3, data_wait=2.0**-1074), train(4)]
    for count, event in enumerate(events, 1):
        start().write(event)
        assert read(path) == events[:count]


def test_every_line_is_valid_json(start, path):
    start().write(train(1, loss=math.nan, lr=math.inf, grad_norm=-math.inf, note="two\nlines", best=None))
    (line,) = path.read_text().splitlines()
    event = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert event == train(1, loss=None, lr=None, grad_norm=None, note="two\nlines", best=None)


@pytest.mark.parametrize(
    ("before", "step", "evaluated", "after"),
    [
        ([5, -5, 10, -10, 15, -15, 100, -100], 10, 10, [5, -5, 10, -10]),
        # The run was stopped during the validation after step 10, resumed, validated, and was killed before a save.
        ([5, -5, 10, -10], 10, 5, [5, -5, 10]),
        ([5, -5], 0, 0, []),
    ],
)
def test_a_resume_removes_the_lines_that_are_written_again(start, path, before, step, evaluated, after):
    fill(path, before)
    start(step, evaluated, step)
    assert steps(path) == after
    inode = path.stat().st_ino
    writer = start(step, evaluated, step)
    assert path.stat().st_ino == inode  # There was nothing to remove, so the file was not replaced.
    writer.write(train(11))
    assert steps(path) == [*after, 11]
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


def test_a_partial_last_line_of_a_crash_is_removed(start, path, warnings):
    line = json.dumps(train(1)) + "\n"
    for cut in range(1, len(line)):
        path.write_text(line + line[:-cut])
        start(5, 0, 1).write(train(2))
        assert steps(path) == [1, 2]
    assert warnings == []


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xfe", b"[1]", b'{"step": "1"}', b'{"a": 1}', b"null", b"[" * 100_000, b'{"event": {}, "step": 1}'],
)
def test_a_line_that_is_no_event_is_removed_with_a_warning(start, path, warnings, garbage):
    good = json.dumps(train(1)).encode() + b"\n"
    path.write_bytes(good + garbage + b"\n" + good)
    start(5, 0, 0)
    assert path.read_bytes() == good + good
    assert len(warnings) == 1


@pytest.mark.parametrize("kind", ["/dev/full", "/dev/zero", "/dev/null", "pipe", "folder", "large"])
def test_a_file_without_end_is_not_read(start, path, kind):
    """Reading such a file would take all memory or wait forever."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate((1 << 30) + 1)  # A sparse file, without blocks.
    else:
        path.symlink_to(kind)
    with pytest.raises(OSError, match="bytes" if kind == "large" else "regular file"):
        check_metrics(path)
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be read"):
        start(1, 1, 1)


@pytest.mark.parametrize(
    ("lines", "is_complete"),
    [
        ([5, 10, -10], True),
        ([5, -5, 10, -10, 15, -15], True),  # Lines of later steps are removed.
        ([5, 10], False),
        ([5, -10], False),
        ([-10, 10, None], False),
        ([], False),
        (None, False),
        ("a new run", True),
    ],
)
def test_lost_lines_are_a_warning(start, path, warnings, lines, is_complete):
    if isinstance(lines, list):
        fill(path, lines)
    start(*((0, 0, 0) if lines == "a new run" else (12, 10, 10)))
    assert [text for text in warnings if "lacks lines of the steps up to 12" not in text] == []
    assert len(warnings) == (not is_complete)


def test_a_failed_resume_keeps_the_old_file(start, path, monkeypatch):
    fill(path, [1, 2])

    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UsageError, match="No space"):
        start(1, 1, 1)
    assert steps(path) == [1, 2]


def test_a_full_disk_leaves_whole_lines_and_one_warning(start, path, warnings):
    """A limit for the size of files lets a part of the line be written, like a disk that is almost full."""
    writer = start()
    writer.write(train(1))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, old[1]))
    try:
        writer.write(train(2))
        writer.write(train(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert len(warnings) == 1
    assert "File too large" in warnings[0]
    writer.write(train(4))
    assert steps(path) == [1, 4]
