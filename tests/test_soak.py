"""`scripts/soak.py`: kills at random, and the same bits in the end."""

import json
import re
import signal
import sys

import numpy as np
import pytest
import soak
from conftest import ROOT
from faults import Faults
from safetensors.numpy import save_file

SOAK = ROOT / "scripts" / "soak.py"


@pytest.mark.runs
@pytest.mark.full
@pytest.mark.parametrize(("kills", "world"), [(3, 1), (2, 2), (4, 3)])
def test_killed_again_and_again(run_command, tmp_path, kills, world):
    words = ["--kills", str(kills), "--world", str(world), "--program", ROOT / "tests" / "faults.py"]
    result = run_command([sys.executable, SOAK, *words], timeout=60 + 60 * kills, env=Faults(tmp_path, ()).environment)
    assert result.returncode == 0, result.output
    assert len(re.findall(r"^kill \d+: SIG\w+ to .*: gone in", result.stdout, re.MULTILINE)) == kills
    assert "the same, to the bit" in result.stdout


@pytest.mark.runs
@pytest.mark.full
def test_interrupted_it_leaves_no_process(start_command):
    command = start_command([sys.executable, SOAK, "--kills", "1"])
    command.wait_for(lambda: len(command.alive()) > 3)
    command.process.send_signal(signal.SIGINT)
    assert command.finish(timeout=20, grace=0.5).returncode == 130


def run_folder(folder, weight, loss, speed):
    (folder / "checkpoints").mkdir(parents=True)
    save_file({"model.weight": np.array([weight])}, folder / "checkpoints" / "last.safetensors")
    lines = [{"event": "slowest_rank", "seconds": speed}] if speed < 2 else []
    lines.append({"event": "train", "step": 1, "loss": loss, "images_per_second": speed})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return soak.contents(folder)


def test_it_sees_every_number_but_those_of_time(tmp_path):
    """The control of the verdict."""
    one = run_folder(tmp_path / "one", 1.0, 2.0, 3.0)
    assert run_folder(tmp_path / "slower", 1.0, 2.0, 1.0) == one
    assert run_folder(tmp_path / "weights", 1.0 + 2**-52, 2.0, 3.0) != one
    assert run_folder(tmp_path / "metrics", 1.0, 2.0000000001, 3.0) != one
