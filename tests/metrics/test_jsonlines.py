"""`metrics.jsonl`: the file stays valid after a crash, and errors never end a run."""

import errno
import json
import math
import os

import pytest

from seresnext.metrics.jsonlines import JsonLines


@pytest.fixture
def warnings():
    return []


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(step, **fields):
    return {"event": "train", "step": step, "epoch": step / 10, **fields}


def test_floats_keep_every_digit(tmp_path, warnings):
    event = train(3, loss=0.1 + 0.2, lr=1e-320, images_per_second=1 / 3, data_wait=2.0**-1074)
    JsonLines(tmp_path / "m", warnings.append).write(event)
    assert read(tmp_path / "m") == [event]


def test_every_line_is_valid_json(tmp_path, warnings):
    writer = JsonLines(tmp_path / "m", warnings.append)
    writer.write(train(1, loss=math.nan, lr=math.inf, grad_norm=-math.inf, note="two\nlines", best=None))

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    (line,) = (tmp_path / "m").read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert event == train(1, loss=None, lr=None, grad_norm=None, note="two\nlines", best=None)


def test_lines_are_written_at_once_and_appended(tmp_path, warnings):
    for step in (1, 2):
        writer = JsonLines(tmp_path / "m", warnings.append)
        writer.write(train(step))
        assert read(tmp_path / "m")[-1]["step"] == step
    assert len(read(tmp_path / "m")) == 2


def test_resume_removes_later_lines(tmp_path, warnings):
    path = tmp_path / "m"
    writer = JsonLines(path, warnings.append)
    for step in (5, 10, 15, 100):
        writer.write(train(step))
        writer.write({"event": "validate", "step": step, "epoch": 1.0, "top1": 1.0})
    kept = path.read_text().splitlines()[:4]
    assert writer.rewind(10, 10, 10)
    assert path.read_text().splitlines() == kept
    inode = path.stat().st_ino
    assert writer.rewind(10, 10, 10)
    assert path.stat().st_ino == inode  # There was nothing to remove, so the file was not replaced.
    writer.write(train(11))
    assert [event["step"] for event in read(path)] == [5, 5, 10, 10, 11]
    writer.rewind(-1, -1, 0)
    assert path.read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_resume_removes_validations_that_run_again(tmp_path, warnings):
    """The run was stopped during the validation after step 10, resumed, validated, and was killed before a save."""
    path = tmp_path / "m"
    writer = JsonLines(path, warnings.append)
    for step in (5, 10):
        writer.write(train(step))
        writer.write({"event": "validate", "step": step, "epoch": 1.0, "top1": 1.0})
    assert writer.rewind(10, 5, 10)
    assert [(event["event"], event["step"]) for event in read(path)] == [("train", 5), ("validate", 5), ("train", 10)]


def test_rewind_without_a_file(tmp_path, warnings):
    assert JsonLines(tmp_path / "m", warnings.append).rewind(3, 0, 0)
    assert not JsonLines(tmp_path / "m", warnings.append).rewind(3, 3, 0)
    assert not (tmp_path / "m").exists()


def test_partial_last_line_of_a_crash_is_removed(tmp_path, warnings):
    path = tmp_path / "m"
    line = json.dumps(train(1)) + "\n"
    for cut in range(1, len(line)):
        path.write_text(line + line[:-cut])
        writer = JsonLines(path, warnings.append)
        writer.write(train(2))
        assert [event["step"] for event in read(path)] == [1, 2]


def test_rewind_removes_lines_that_are_no_event(tmp_path, warnings):
    path = tmp_path / "m"
    good = json.dumps(train(1))
    path.write_bytes(b'\xff\xfe\n[1]\n{"step": "1"}\n{"a": 1}\nnull\n' + good.encode() + b"\n")
    assert not JsonLines(path, warnings.append).rewind(5, 0, 0)
    assert path.read_text() == good + "\n"


def test_lists_within_lists_are_no_event(tmp_path, warnings):
    path = tmp_path / "m"
    good = json.dumps(train(1)) + "\n"
    path.write_text(good + "[" * 100_000 + "\n" + '{"event": {}, "step": 1}\n' + good)
    assert not JsonLines(path, warnings.append).rewind(5, 0, 0)
    assert path.read_text() == good + good


@pytest.mark.parametrize("kind", ["/dev/full", "/dev/zero", "/dev/null", "pipe", "folder", "large"])
def test_a_file_without_end_is_not_read(tmp_path, warnings, kind):
    """Reading such a file would take all memory or wait forever."""
    path = tmp_path / "m"
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
        JsonLines(path, warnings.append)


@pytest.mark.parametrize(
    ("lines", "is_complete"),
    [
        ([5, 10, -10], True),
        ([5, -5, 10, -10, 15, -15], True),  # Lines of later steps are removed.
        ([5, 10], False),
        ([5, -10], False),
        ([-10, 10, None], False),
        ([], False),
    ],
)
def test_lost_lines_are_found(tmp_path, warnings, lines, is_complete):
    """Positive numbers are steps of `train` events, negative numbers are steps of validations, None is garbage."""
    path = tmp_path / "m"
    events = [{"event": "train" if step > 0 else "validate", "step": abs(step)} if step else None for step in lines]
    path.write_text("".join((json.dumps(event) if event else "garbage") + "\n" for event in events))
    writer = JsonLines(path, warnings.append)
    assert writer.rewind(12, 10, 10) is is_complete


def test_new_run_has_no_lost_lines(tmp_path, warnings):
    writer = JsonLines(tmp_path / "m", warnings.append)
    assert writer.rewind(0, 0, 0)


def test_failed_rewind_keeps_the_old_file(tmp_path, warnings, monkeypatch):
    path = tmp_path / "m"
    writer = JsonLines(path, warnings.append)
    for step in (1, 2):
        writer.write(train(step))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        writer.rewind(1, 1, 1)
    assert len(read(path)) == 2


def test_full_disk_leaves_whole_lines_and_one_warning(tmp_path, warnings, monkeypatch):
    path = tmp_path / "m"
    writer = JsonLines(path, warnings.append)
    writer.write(train(1))
    real = os.write
    calls = []

    def filling_up(file, data):
        calls.append(data)
        if len(calls) % 2:
            return real(file, data[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", filling_up)
        writer.write(train(2))
        writer.write(train(3))
    assert len(calls) == 4
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    writer.write(train(4))
    assert [event["step"] for event in read(path)] == [1, 4]
