"""A process killed at any system call during a save leaves the old or the new checkpoint. strace kills the process."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import in_ci, needs
from interrupted_saves import NEW, OLD, Child, assert_next_save_mends, assert_sound, make_old, save_new

from seresnext.checkpoint import file_format, store
from seresnext.errors import CheckpointError

pytestmark = [
    needs(shutil.which("strace") is not None, "needs strace"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
TRACED = "openat,write,pwrite64,sendfile,copy_file_range,fsync,/^rename,/^link,/^unlink"
COMMIT = store.commit


@pytest.fixture(params=["links", "copies"])
def links(request, monkeypatch) -> bool:
    """A file system with hard links, and a file system without."""
    if request.param == "copies":
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))
    return request.param == "links"


@pytest.fixture
def folder(tmp_path):
    """`folder(number)`: a fresh copy of the old state."""
    make_old(tmp_path / "old")

    def make(number: object) -> Path:
        # Keep the links: `last` and `best` are names of the same files.
        subprocess.run(["cp", "-a", tmp_path / "old", tmp_path / f"run-{number}"], check=True)
        return tmp_path / f"run-{number}"

    return make


def traced(child: Child, options: list[str], log: Path) -> int:
    """Run a child process under strace."""
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-o", log, *options, "-p", str(child.pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        while "TracerPid:\t0" in (Path("/proc") / str(child.pid) / "status").read_text():
            if strace.poll() is not None:
                child.go()
                assert strace.stderr
                give_up = pytest.fail if in_ci() else pytest.skip
                give_up(f"strace may not attach here: {strace.stderr.read().decode().strip()}")
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return child.go()
    finally:
        strace.wait(30)
        assert strace.stderr
        strace.stderr.close()


def killed(folder: Callable[[object], Path], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Save once for each system call, killed before the call. Return the kinds of calls and the folders.

    strace counts each kind of call separately. A trace of the save gives the kinds.
    """
    run = folder("whole")
    assert traced(Child(lambda: save_new(run)), ["-e", f"trace={TRACED}"], tmp_path / "trace") == 0
    kinds = re.findall(r"^\d+ +(\w+)\(", (tmp_path / "trace").read_text(), re.MULTILINE)
    for kind in sorted(set(kinds) - {"openat"}):
        for number in range(1, kinds.count(kind) + 1):
            run = folder(f"{kind}-{number}")
            inject = ["-e", f"trace={kind}", "-e", f"inject={kind}:signal=SIGKILL:when={number}"]
            assert traced(Child(lambda run=run: save_new(run)), inject, tmp_path / "log") == -signal.SIGKILL
            yield kind, run


def test_killed_at_any_call_the_old_or_the_new_is_there(links, folder, tmp_path):
    kinds, found = [], set()
    for kind, run in killed(folder, tmp_path):
        kinds.append(kind)
        found.add(assert_sound(run))
        assert_next_save_mends(run)
    assert {"write", "pwrite64", "fsync"} <= set(kinds)
    # The file, the name, and each of two links: the name, and for copies also the content.
    assert kinds.count("fsync") == (4 if links else 6)
    assert found == {OLD, NEW}


def removing_first(run: Path, *content: Any) -> Path:
    """A wrong save that removes old files before the write."""
    for path in [*store.steps(run).values(), run / "last.safetensors"]:
        path.unlink(missing_ok=True)
    return COMMIT(run, *content)


def writing_in_place(run: Path, step: int, tensors: Any, metadata: Any) -> Path:
    """A wrong save without a temporary file."""
    path = run / f"step-{step:08}.safetensors"
    path.unlink(missing_ok=True)
    file_format.write_synced(path, *file_format.header(tensors, metadata))
    return path


@pytest.mark.parametrize("commit", [removing_first, writing_in_place])
@pytest.mark.full
def test_careless_saves_are_found_out(folder, tmp_path, monkeypatch, commit):
    """The control."""
    monkeypatch.setattr(store, "commit", commit)
    found_out = 0
    for _, run in killed(folder, tmp_path):
        try:
            assert_sound(run)
        except (AssertionError, CheckpointError):
            found_out += 1
    assert found_out > 0


def test_the_order_of_system_calls(folder, tmp_path):
    """Data before the name, the name before the links, and removals at the end."""
    run = folder("traced")
    assert traced(Child(lambda: save_new(run)), ["-e", f"trace={TRACED}"], tmp_path / "trace") == 0
    order = []
    for line in (tmp_path / "trace").read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if not call or str(run) not in line:
            continue
        kind, rest = call[1].removesuffix("64"), call[2]
        paths = [Path(path).name for path in re.findall(rf'{re.escape(str(run))}[^">]*', rest)]
        if kind != "openat":
            order.append((re.sub(r"at\d?$", "", kind), *paths))
    temporary, new = f".step-{NEW:08}.safetensors.tmp", f"step-{NEW:08}.safetensors"
    whole = [
        ("write", temporary),
        ("pwrite", temporary),
        ("fsync", temporary),
        ("rename", temporary, new),
        ("fsync", run.name),
        *(
            step
            for name in ("last", "best")
            for step in [
                ("link", new, f".{name}.safetensors.tmp"),
                ("rename", f".{name}.safetensors.tmp", f"{name}.safetensors"),
                ("fsync", run.name),
            ]
        ),
        ("unlink", f"step-{OLD:08}.safetensors"),
    ]
    # Removals of missing temporary files are left out. Writes in a row are one entry.
    seen = [entry for entry in order if not (entry[0] == "unlink" and entry[1].startswith("."))]
    seen = [entry for entry, before in zip(seen, [None, *seen], strict=False) if entry != before]
    assert seen == whole
