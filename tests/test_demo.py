"""`scripts/demo.sh`, made short."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


@pytest.mark.runs
@pytest.mark.full
@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="demo.sh uses .venv, and these tests run elsewhere")
def test_demo_at_reduced_length(run_command, tmp_path, digits_folder):
    argv = ["bash", SCRIPTS / "demo.sh", "--output", "run", "--data", digits_folder, "--set", "length=6st"]
    result = run_command(argv, timeout=400, cwd=tmp_path)
    assert result.returncode == 0, result.output
    run = tmp_path / "run"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    scores = json.loads((run / "validation.json").read_text())
    assert scores["num_images"] == 360
    assert f"accuracy     {scores['top1']:.2f} % of 360" in result.stdout
    assert str(run) in result.stdout
    assert "tensorboard" in result.stdout
    assert (run / "curves.png").exists()
    assert (run / "report" / "index.html").exists()
    assert "report/index.html" in result.stdout
