"""The tests' own instruments: they must see what they are there to see."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT, needs
from launcher import PYTHON
from PIL import Image

ORPHANS = {
    "started": """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("left", child.pid)
""",
    "forked": """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
""",
}


@pytest.mark.parametrize("python", [sys.executable, PYTHON], ids=["new", "fork"])
@pytest.mark.parametrize("how", ORPHANS)
def test_a_left_process_fails_the_test_and_is_killed(start_command, tmp_path, python, how):
    (tmp_path / "script.py").write_text(ORPHANS[how])
    command = start_command([python, tmp_path / "script.py"])
    with pytest.raises(pytest.fail.Exception, match="left processes"):
        command.finish(timeout=10, grace=0.5)
    assert len(command.alive()) == 1
    command.kill()
    assert command.alive() == []


def test_a_slow_command_fails_the_test(start_command):
    command = start_command([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"])
    command.wait_for(lambda: "begun" in command.output, timeout=10)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)still ran after 0.2 s.*begun"):
        command.finish(timeout=0.2)


def test_waiting_for_what_never_comes_fails(start_command):
    command = start_command([sys.executable, "-c", "print('all')"])
    with pytest.raises(pytest.fail.Exception, match="ended with 0 before"):
        command.wait_for(lambda: "more" in command.output, timeout=10)


def test_torchrun_starts_as_many_workers_and_ends_them(torchrun, tmp_path):
    script = tmp_path / "worker.py"
    # In one piece: torchrun lets its workers print word by word, and the two would mix.
    words = "f\"rank {os.environ['RANK']} {os.environ['CUDA_VISIBLE_DEVICES'] == ''}\\n\""
    script.write_text(f"import os\nos.write(1, {words}.encode())\n")
    result = torchrun(2, [script])
    assert result.returncode == 0, result.output
    assert sorted(line for line in result.stdout.splitlines() if "rank" in line) == ["rank 0 True", "rank 1 True"]


def test_tiny_images_are_jpegs_that_tell_their_class(tiny_image_folder):
    root = tiny_image_folder(classes=3, per_class=4, size=24, val_per_class=2)
    assert root == tiny_image_folder(classes=3, per_class=4, size=24, val_per_class=2)
    assert len(list(root.glob("train/*/*.jpg"))) == 12
    assert len(list(root.glob("val/*/*.jpg"))) == 6
    pixels = {}
    for path in sorted(root.glob("*/*/*.jpg")):
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (24, 24))
            pixels[path.parts[-3:]] = np.asarray(image, float)
    assert len({image.tobytes() for image in pixels.values()}) == 18  # no two alike, over both splits
    same, other = (
        pixels["val", label, "0.jpg"] - pixels["train", "class_0", "0.jpg"] for label in ("class_0", "class_1")
    )
    assert np.abs(same).mean() < np.abs(other).mean()


@pytest.mark.parametrize(("options", "outcome"), [([], "1 passed, 2 skipped"), (["--full"], "2 passed, 1 skipped")])
def test_long_tests_run_on_request(tmp_path, run_command, options, outcome):
    """A skipped test says how to run it, and the summary is the last line."""
    (tmp_path / "test_it.py").write_text(MARKED)
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", ROOT / "pyproject.toml"]
    plugin = {"PYTHONPATH": str(ROOT / "tests")}
    result = run_command([sys.executable, *arguments, "-p", "conftest", *options, tmp_path], env=plugin)
    assert result.returncode == 0, result.output
    assert outcome in result.stdout.splitlines()[-1]
    assert ("takes long: bash scripts/test.sh --full runs it" in result.stdout) is not bool(options)


MARKED = """
import pytest


def test_always():
    pass


@pytest.mark.full
def test_long():
    pass


@pytest.mark.gpu
def test_on_a_gpu():
    pass
"""


def test_what_a_machine_lacks_is_skipped_but_not_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert [needs(is_there, "needs it").args[0] for is_there in (False, True)] == [True, False]
    monkeypatch.setenv("CI", "true")
    assert [needs(is_there, "needs it").args[0] for is_there in (False, True)] == [False, False]
