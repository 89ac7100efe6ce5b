"""A checkpoint that version 0.1.0 wrote, in the middle of a training of the digits, is validated and resumed.

Version 0.1.0 made the file and the figures with `tests/small_digits.py train --recipe digits --set checkpoint.every=4ep
--set checkpoint.keep=10 --set ema.decay=0.95 --set evaluation.weights=ema`, on an x86-64 CPU.
"""

import json
import lzma
from pathlib import Path

import launcher
import pytest
from run_folders import events, lines

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "digits-0.1.0.safetensors.xz"
PROGRAM = str(ROOT / "tests" / "small_digits.py")
# After step 88, the step of the file, and after the last step.
AT_88 = {"model": (77.5, 1.0705012642772345), "ema": (74.72222222222223, 1.168656345213577)}
AT_END = {"model": (86.66666666666667, 0.7622810713868091), "ema": (86.11111111111111, 0.7730234335937156)}
# Other CPUs round differently. One image is 0.28 points.
TWO_IMAGES = 0.6


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The file, in the folder of a run."""
    path = tmp_path / "run" / "checkpoints" / "step-00000088.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    return path


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_a_checkpoint_of_0_1_0_is_validated(run_command, tmp_path, digits_folder, checkpoint, weights):
    report = tmp_path / "report.json"
    options = ["--checkpoint", checkpoint, "--data", digits_folder, "--weights", weights, "--json", report]
    result = run_command([launcher.PYTHON, PROGRAM, "validate", *map(str, options)])
    assert result.returncode == 0, result.output
    found, (top1, loss) = json.loads(report.read_text()), AT_88[weights]
    assert found["num_images"] == 360
    assert found["top1"] == pytest.approx(top1, abs=TWO_IMAGES)
    assert found["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.full
def test_a_run_of_0_1_0_is_resumed(run_command, digits_folder, checkpoint):
    run = checkpoint.parents[1]
    settings = ["checkpoint.every=4ep", "checkpoint.keep=10", "ema.decay=0.95", "evaluation.weights=ema"]
    options = ["--recipe", "digits", "--data", str(digits_folder), "--output", str(run), "--allow-changed", "data.root"]
    sets = [word for setting in settings for word in ("--set", setting)]
    result = run_command([launcher.PYTHON, PROGRAM, "train", *options, *sets])
    assert result.returncode == 0, result.output
    assert min(event["step"] for event in lines(run)) > 88
    for weights, (top1, loss) in AT_END.items():
        (event,) = [e for e in events(run, "validate") if (e["step"], e["weights"]) == (176, weights)]
        assert event["top1"] == pytest.approx(top1, abs=5 * TWO_IMAGES), weights
        assert event["loss"] == pytest.approx(loss, rel=0.01), weights
