"""The run folder: one training at a time, nothing of an earlier run lost, and small files that are never half there."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.training.run_folder import RunFolder, describe_environment, read_status, write_atomically

ROOT = Path(__file__).parents[2]

# The lock is held as long as its file is open, and nothing closes it but the end of the folder or of the process.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*lock:ResourceWarning")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "first"


def opened(path, fresh=False):
    folder = RunFolder(path, World())
    folder.open()
    if fresh:
        folder.set_aside()
    return folder


def listing(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file())


# ------------------------------------------------------------------------------------------------ one at a time


def test_opening_makes_the_folder(path):
    folder = opened(path)
    assert folder.checkpoints == path / "checkpoints"
    assert folder.checkpoints.is_dir()


def test_a_second_training_is_refused_and_told_who_is_there(path):
    first = opened(path)
    with pytest.raises(UsageError) as caught:
        opened(path)
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"{path} is in use by {holder}; wait for it, stop it, or choose another folder" in str(caught.value)
    with pytest.raises(UsageError):  # Also not to set it aside.
        opened(path, fresh=True)
    assert first.checkpoints.is_dir()


def test_the_folder_is_free_once_the_training_is_gone(path):
    opened(path)  # Let go of at once.
    opened(path)


def test_a_killed_training_holds_nothing(path):
    code = f"""
import sys, time
from pathlib import Path
from seresnext.distributed import World
from seresnext.training.run_folder import RunFolder
folder = RunFolder(Path({str(path)!r}), World())
folder.open()
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match=f"process {holder.pid} on "):
            opened(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        opened(path)


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=f"cannot write to the run folder {re.escape(str(path))}: .*--output"):
            opened(path)


# ------------------------------------------------------------------------------------------------ starting afresh


def test_an_earlier_run_is_set_aside_whole(path):
    for number in (1, 2):
        folder = opened(path, fresh=True)
        folder.write_recipe(f"recipe {number}")
        (folder.checkpoints / "last.safetensors").write_text(f"weights {number}")
        del folder
    folder = opened(path, fresh=True)
    assert listing(path) == [
        "earlier-1/checkpoints/last.safetensors",
        "earlier-1/recipe.yaml",
        "earlier-2/checkpoints/last.safetensors",
        "earlier-2/recipe.yaml",
        "lock",
    ]
    assert (path / "earlier-1" / "recipe.yaml").read_text() == "recipe 1"
    assert (path / "earlier-2" / "recipe.yaml").read_text() == "recipe 2"
    assert folder.checkpoints.is_dir()
    with pytest.raises(UsageError):  # The lock outlives the setting aside.
        opened(path)


def test_nothing_is_set_aside_where_nothing_was(path):
    opened(path, fresh=True)
    opened(path, fresh=True)
    assert sorted(entry.name for entry in path.iterdir()) == ["checkpoints", "lock"]


def test_going_on_leaves_everything(path):
    opened(path).write_recipe("recipe")
    opened(path)
    assert listing(path) == ["lock", "recipe.yaml"]


# ------------------------------------------------------------------------------------------------ small files


def test_status_says_how_it_is(path):
    folder = opened(path)
    assert folder.status() == {}
    folder.write_status("running", 12)
    folder.write_status("failed", 13, "out of memory")
    status = json.loads((path / "status.json").read_text())
    assert status == folder.status() == read_status(path)
    updated = datetime.fromisoformat(status.pop("updated"))
    assert timedelta(seconds=-2) < datetime.now(UTC) - updated < timedelta(seconds=60)
    assert status == {
        "state": "failed",
        "step": 13,
        "reason": "out of memory",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "world_size": 1,
    }


def test_a_status_that_cannot_be_written_is_a_warning(path, monkeypatch, capsys):
    folder = opened(path)
    folder.write_status("running", 3)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    folder.write_status("failed", 4)
    assert "status.json cannot be written (No space left on device)" in capsys.readouterr().err
    assert read_status(path)["state"] == "running"
    assert [entry.name for entry in path.iterdir() if entry.name.startswith(".status")] == []


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {}, False),
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a"}, True),
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "b"}, False),
        ({"TORCHELASTIC_RUN_ID": "a"}, {}, False),
        (
            {"TORCHELASTIC_RUN_ID": "none"},
            {"TORCHELASTIC_RUN_ID": "none"},
            True,
        ),  # The same launcher, which has no name.
    ],
)
def test_a_launch_that_starts_again_is_known(path, monkeypatch, first, second, same):
    def start(environment):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    start(first)
    folder = opened(path)
    assert not folder.is_of_this_launch()
    folder.write_environment(describe_environment(World()))
    start(second)
    assert folder.is_of_this_launch() is same


def test_another_launcher_without_a_name_is_another_launch(path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    folder = opened(path)
    folder.write_environment(describe_environment(World()))
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert not folder.is_of_this_launch()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", None])
def test_a_status_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) == {}


def test_recipe_and_environment(path):
    folder = opened(path)
    folder.write_recipe("model: {}\n")
    folder.write_environment({"python": "3", "packages": {"torch": None}})
    assert (path / "recipe.yaml").read_text() == "model: {}\n"
    assert json.loads((path / "environment.json").read_text()) == {"python": "3", "packages": {"torch": None}}
    assert not [name for name in listing(path) if name.startswith(".")]


def test_a_reader_never_sees_a_part(tmp_path):
    target, texts, seen = tmp_path / "file", ["a" * 200_000, "b" * 100_000], set()
    write_atomically(target, texts[0])
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(target.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write_atomically(target, texts[number % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_other_ranks_write_nothing(path):
    folder = RunFolder(path, World(rank=1, size=2))
    folder.open()
    folder.set_aside()
    folder.write_recipe("recipe")
    folder.write_environment({})
    folder.write_status("running", 0)
    assert not path.exists()


# ------------------------------------------------------------------------------------------------ environment


def test_the_environment_is_this_one():
    environment = describe_environment(World(0, 2))
    assert json.loads(json.dumps(environment)) == environment
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["packages"]["seresnext"]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (environment["world_size"], environment["gpu"], environment["cuda"]) == (2, None, None)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert environment["git_commit"] is None or environment["git_commit"].removesuffix("-dirty") == head


def test_no_git_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment(World())["git_commit"] is None


def test_a_file_system_without_locks_is_told(path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    notice = RunFolder(path, World()).open()
    assert "No locks available" in notice
