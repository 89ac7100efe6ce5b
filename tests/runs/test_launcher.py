"""tests/launcher.py: a fork has the properties and the end of a new process."""

import json
import sys
from functools import partial

import pytest
from launcher import PYTHON

pytestmark = pytest.mark.runs

LOOK = """
import json, multiprocessing, os, sys
import atexit, resource, signal, threading

found = {
    "name": __name__,
    "arguments": sys.argv,
    "first folder of modules": sys.path[0],
    "environment": {name: value for name, value in os.environ.items() if name not in OWN},
    "folder": os.getcwd(),
    "leads its session": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "parent of multiprocessing": multiprocessing.parent_process(),
    "may have children": not multiprocessing.current_process().daemon,
    "read": sys.stdin.read(),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
    "threads": [thread.name for thread in threading.enumerate()],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "limits": [resource.getrlimit(number) for number in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)],
}
print(json.dumps(found))
print("said", file=sys.stderr)
atexit.register(print, "at the end")
print("without a line's end", end="")
"""


# These variables differ from launch to launch.
OWN = ("SERESNEXT_TEST_TREE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")
ENDS = {"its end": "", "exit": "sys.exit(3)", "message": "sys.exit('no')", "error": "1 / 0", "signal": "os.kill(0, 9)"}


def look(tmp_path, start, last):
    """Return the end of a script that prints the properties of the process and then does `last`."""
    script = tmp_path / "look.py"
    script.write_text(f"OWN = {OWN}\n{LOOK}\n{last}\n")
    return start([script, "--word", "a b"], env={"GIVEN": "x"})


@pytest.mark.parametrize("end", ENDS)
def test_a_fork_of_python_is_as_a_new_one(run_command, tmp_path, end):
    new, fork = (
        look(tmp_path, lambda words, python=python, **options: run_command([python, *words], **options), ENDS[end])
        for python in (sys.executable, PYTHON)
    )
    assert fork.returncode == new.returncode
    assert fork.stdout == new.stdout
    assert fork.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]
    assert json.loads(fork.stdout.splitlines()[0])["environment"]["GIVEN"] == "x"


def test_a_worker_that_is_a_fork_is_as_a_new_one(torchrun, run_world, tmp_path):
    last = "import torch; print(torch.get_num_threads(), torch.__config__.parallel_info())"
    new, fork = (look(tmp_path, partial(start, 1), last) for start in (torchrun, run_world))
    assert fork.returncode == new.returncode == 0
    ours, theirs = (json.loads(result.stdout.splitlines()[0]) for result in (fork, new))
    assert ours.pop("environment").items() ^ theirs.pop("environment").items() == set()
    assert ours == theirs
    assert fork.stdout.splitlines()[1:] == new.stdout.splitlines()[1:]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_worker_ends_the_others(run_world, tmp_path, failing):
    """SIGTERM ends one worker, and SIGKILL the worker that ignores SIGTERM."""
    script = tmp_path / "worker.py"
    script.write_text(FAILING.format(failing=failing))
    result = run_world(3, [script], options=["--shutdown-timeout=1"], timeout=20)
    assert result.returncode == 1
    assert result.stderr.count("forcefully exiting") == 1
    assert result.seconds < 10


FAILING = """
import os, pathlib, signal, sys, time
rank, ready = int(os.environ["RANK"]), pathlib.Path(__file__).with_name("ready")
if rank == 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.touch()
while rank != {failing} or not ready.exists():
    time.sleep(0.01)
sys.exit(3)
"""
