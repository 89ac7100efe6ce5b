"""Whole training runs: the run folder, and a real train.py that is interrupted."""

import signal
import sys

import pytest
from launcher import PYTHON
from run_folders import differences, events, losses, status

pytestmark = pytest.mark.runs


@pytest.fixture
def real_arguments(train_arguments):
    """`real_arguments(output, *more) -> [...]`: the real train.py and the network of the recipe."""
    return lambda *words: ["train.py", *train_arguments(*words)[1:]]


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_started_again_it_is_bit_for_bit_the_same(
    run_command, start_command, real_arguments, tmp_path, number
):
    """New processes of the real train.py and the network of the recipe."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = start_command([sys.executable, *real_arguments(run)])
    command.wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) >= 1)
    command.process.send_signal(number)
    result = command.finish()
    assert result.returncode == 0, result.output
    assert status(run)["state"] == "preempted"
    assert number.name in status(run)["reason"]
    assert "Traceback" not in result.output
    stopped_at = status(run)["step"]
    assert 0 < stopped_at < 8
    assert (run / "checkpoints" / f"step-{stopped_at:08}.safetensors").exists()
    for output in (run, whole):
        assert run_command([sys.executable, *real_arguments(output)]).returncode == 0
        assert status(output)["state"] == "finished"
    assert differences(run, whole) == []
    for kind in ("train", "validate"):
        assert events(run, kind) == events(whole, kind)


def test_the_run_folder_is_as_designed(train, tmp_path):
    run = train(tmp_path / "run")
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.yaml", "environment.json", "status.json", "metrics.jsonl", "tensorboard", "log.txt"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "step-00000004.safetensors", "step-00000008.safetensors", "last.safetensors", "best.safetensors",
    }  # fmt: skip
    assert [event["step"] for event in events(run, "train")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [(e["step"], e["weights"]) for e in events(run, "validate")] == [
        (4, "model"), (4, "ema"), (8, "model"), (8, "ema"),
    ]  # fmt: skip
    assert {e["num_images"] for e in events(run, "validate")} == {13}


@pytest.mark.gpu
@pytest.mark.parametrize("how", [("precision=fp32", "compile=false"), ("precision=bf16", "compile=true")], ids="-".join)
def test_on_a_gpu_a_resumed_run_is_bit_for_bit_the_same(run_command, real_arguments, tmp_path, how):
    settings = ("runtime.deterministic=true", *(f"runtime.{setting}" for setting in how))
    changes = [word for setting in settings for word in ("--set", setting)]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    middle = whole / "checkpoints" / "step-00000004.safetensors"
    for output, more in ((whole, []), (resumed, ["--resume", str(middle)])):
        result = run_command([PYTHON, *real_arguments(output, *changes, *more)], timeout=300)
        assert result.returncode == 0, result.output
    assert differences(whole, resumed) == []
