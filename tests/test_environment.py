"""The set-up of an environment, as the shell scripts do it, with a stand-in for python3 that installs nothing."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Command, StartCommand

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


# Answers the questions of the set-up, records installations, and is also the Python of the virtual environment.
STAND_IN = """#!/bin/bash
case "$*" in
    *version_info*) [ -z "$STAND_IN_OLD" ] ;;
    --version) echo "Python 3.8.18" ;;
    *ensurepip*) [ -z "$STAND_IN_NO_VENV" ] ;;
    "-m venv --clear "*) rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>"$STAND_IN_LOG" ;;
    "-m pip install "*) echo pip >>"$STAND_IN_LOG"; echo "$STAND_IN_PIP_SAYS"; ${STAND_IN_PIP:-true} ;;
    "-m pytest"*) echo "pytest ${!#}" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class SetUp:
    """A copy of the scripts where python3 is the stand-in."""

    def __init__(self, folder: Path, start: StartCommand) -> None:
        self._start = start
        self.project, self.log, bin_folder = folder / "project", folder / "log", folder / "bin"
        shutil.copytree(SCRIPTS, self.project / "scripts")
        for name in ("pyproject.toml", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.project)
        bin_folder.mkdir()
        (bin_folder / "python3").write_text(STAND_IN)
        (bin_folder / "python3").chmod(0o755)
        # The path has only the stand-in and the tools that the scripts use, so that no other Python is found.
        for tool in ("bash", "cat", "cksum", "cp", "dirname", "flock", "head", "mkdir", "rm", "sleep", "tail", "tee"):
            (bin_folder / tool).symlink_to(shutil.which(tool) or tool)
        (bin_folder / "touch").symlink_to(shutil.which("touch") or "touch")
        self.bin, self.env = bin_folder, {"PATH": str(bin_folder), "STAND_IN_LOG": str(self.log)}

    def start(self, script: str = "test.sh", **env: str) -> Command:
        return self._start(["bash", self.project / "scripts" / script, "an argument"], env={**self.env, **env})

    def run(self, script: str = "test.sh", **env: str) -> tuple[int, str, str]:
        result = self.start(script, **env).finish(timeout=30)
        return result.returncode, result.stdout, result.stderr

    def run_again(self) -> list[str]:
        """Run a second time, with success, and return the calls of Python."""
        self.calls()
        assert self.run()[0] == 0
        return self.calls()

    def calls(self) -> list[str]:
        """Return the calls of Python since the last question."""
        calls = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls


@pytest.fixture
def set_up(tmp_path: Path, start_command: StartCommand) -> SetUp:
    return SetUp(tmp_path, start_command)


def test_all_is_installed_once_and_again_after_a_change(set_up, tmp_path):
    assert set_up.run()[:2] == (0, "pytest an argument\n")
    assert set_up.calls() == ["venv", "pip"]
    assert set_up.run("setup.sh")[:2] == (0, f"ready: source {set_up.project}/.venv/bin/activate\n")
    assert set_up.calls() == []
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        with (set_up.project / name).open("a") as file:
            file.write("# changed\n")
        assert set_up.run_again() == ["pip"]
    set_up.project = set_up.project.rename(tmp_path / "moved")
    assert set_up.run_again() == ["venv", "pip"]


def test_a_failed_installation_is_shown_and_repeated(set_up):
    code, out, err = set_up.run(STAND_IN_PIP="false", STAND_IN_PIP_SAYS="ERROR: No matching distribution")
    assert (code, out) == (1, "")
    assert "No matching distribution" in err
    assert "tries again" in err
    assert set_up.run_again() == ["venv", "pip"]


def test_an_interrupted_installation_is_repeated_from_the_start(set_up):
    command = set_up.start(STAND_IN_PIP="sleep 60")
    command.wait_for(lambda: set_up.log.exists() and "pip" in set_up.log.read_text())
    time.sleep(0.5)  # bash may miss a signal while bash starts pip.
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.finish(timeout=10).returncode != 0
    assert set_up.run_again() == ["venv", "pip"]


def test_two_set_ups_at_once_install_once(set_up):
    first = set_up.start(STAND_IN_PIP="sleep 1")
    first.wait_for(set_up.log.exists)
    code, out, err = set_up.run()
    assert (code, out) == (0, "pytest an argument\n")
    assert "Waiting for another set-up" in err
    assert first.finish(timeout=10).returncode == 0
    assert set_up.calls() == ["venv", "pip"]


def test_a_linked_environment_is_not_emptied(set_up, tmp_path):
    set_up.run()
    set_up.calls()
    venv, shared = set_up.project / ".venv", tmp_path / "shared"
    venv.rename(shared)
    (shared / ".stamp").write_text("/another/place\n")
    before = sorted(shared.rglob("*"))
    venv.symlink_to(shared)
    code, out, err = set_up.run()
    assert (code, out) == (1, "")
    assert ".venv is a link" in err
    assert sorted(shared.rglob("*")) == before
    assert set_up.calls() == []
    venv.unlink()  # as the message says
    assert set_up.run_again() == ["venv", "pip"]


def test_an_environment_of_the_user_is_kept(set_up):
    venv = set_up.project / ".venv"
    (venv / "bin").mkdir(parents=True)
    shutil.copy(set_up.bin / "python3", venv / "bin" / "python")
    (venv / "of-the-user").touch()
    assert set_up.run_again() == ["pip"]
    assert (venv / "of-the-user").exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"STAND_IN_OLD": "1"}, "python3 is Python 3.8.18, too old"),
        ({"STAND_IN_NO_VENV": "1"}, "apt install python3-venv"),
        (None, "there is no python3 on the PATH"),
    ],
)
def test_an_unsuitable_python_is_explained(set_up, env, message):
    if env is None:
        (set_up.bin / "python3").unlink()
    code, out, err = set_up.run(**(env or {}))
    assert (code, out) == (1, "")
    assert message in err
    assert not (set_up.project / ".venv").exists()


def test_shell_scripts_parse():
    scripts = [*SCRIPTS.glob("*.sh"), ROOT / ".ci" / "run"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", "-x", script], check=True, cwd=ROOT)
