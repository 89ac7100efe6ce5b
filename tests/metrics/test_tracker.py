"""The process of a tracker: reports, failures, hanging services, and whole runs with both trackers."""

import fcntl
import json
import os
import re
import signal
import time
from pathlib import Path

import launcher
import pytest
from conftest import ROOT, command, until
from run_folders import digest, lines

from seresnext.errors import UsageError
from seresnext.metrics import tracker as module
from seresnext.metrics.sink import RunStart
from seresnext.metrics.tracker import Tracker, attach
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml

EVENT = {"event": "train", "step": 1, "epoch": 0.1}


@pytest.fixture
def said():
    return []


@pytest.fixture
def started(tmp_path, monkeypatch, said):
    """`started(program)`: a tracker whose process runs a program."""

    def started(program):
        monkeypatch.setattr(module, "_PROGRAM", ("-c", program))
        return Tracker("wandb", RunStart(tmp_path, 0, 0, 0, said.append))

    return started


def test_reports_are_printed_and_other_output_is_kept(started, said, tmp_path):
    program = "import sys; print('wandb: offline', flush=True); sys.stderr.write('chatter'); sys.stdin.read(1)"
    tracker = started(program)
    until(lambda: (tracker.write(EVENT), said)[1])
    tracker.close()
    assert said == ["wandb: offline"]
    assert (tmp_path / "trackers" / "wandb.log").read_text() == "chatter"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(3)", "has ended with code 3"),
        ("import os; os.kill(os.getpid(), 9)", "has ended with code -9"),
        ("print('warning: no server')\nraise SystemExit(3)", "no server"),
    ],
)
def test_a_process_that_fails_is_one_warning(started, said, program, words):
    tracker = started(program)
    tracker._process.wait()
    for _ in range(3):
        tracker.write(EVENT)
    tracker.close()
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert words in said[0]


def test_a_service_that_hangs_delays_the_end_by_the_patience_alone(started, said, monkeypatch, tmp_path):
    """Also its helpers end."""
    monkeypatch.setattr(module, "STOPPED_PATIENCE", 0.5)
    (tmp_path / "status.json").write_text('{"state": "preempted"}')
    tracker = started("import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=1); time.sleep(60)")
    before = time.monotonic()
    tracker.write(EVENT)
    assert time.monotonic() - before < 20
    until(lambda: (tracker.write(EVENT), said)[1])
    tracker.close()
    assert time.monotonic() - before < 50
    helper, warning = said
    assert "has not ended within 0.5 s" in warning
    until(lambda: not os.path.exists(f"/proc/{helper}"))  # noqa: PTH110


def test_a_process_that_cannot_be_started_is_one_warning(started, said, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/no/python")
    tracker = started("")
    tracker.write(EVENT)
    tracker.close()
    assert said == [
        "warning: the process of wandb cannot be started (No such file or directory); the run is not affected"
    ]


def test_without_the_extra_a_run_is_refused_before_it_starts(without, tmp_path, started, capsys):
    without("mlflow")
    words = ("--recipe", "digits", "--data", tmp_path, "--output", tmp_path / "run")
    assert command("train", *words, "--set", "logging.sinks=[mlflow]") == 2
    assert 'pip install "seresnext[track]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="has no mlflow"):
        Tracker("mlflow", RunStart(tmp_path, 0, 0, 0, print))
    started("").close()  # The control: wandb is there.


SERVICE = """
import sys
from seresnext.metrics import follow

class Service:
    id = address = "a-run"

    def __init__(self, *arguments):
        print("made", file=sys.stderr)

    def __getattr__(self, name):
        return lambda *arguments: print(name, *arguments[1:2], file=sys.stderr)

follow.SERVICES["wandb"] = Service
follow.main()
"""


@pytest.fixture
def known_run(tmp_path):
    """A run with one line, which the service knows and has not got."""
    trackers = tmp_path / "trackers"
    trackers.mkdir()
    (trackers / "wandb.json").write_text('{"id": "a-run", "sent": 0}')
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(load_recipe("digits").recipe)))
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**EVENT, "loss": 1.0}) + "\n")
    return trackers


def test_lines_that_an_earlier_process_still_sends_are_not_sent_again(started, said, tmp_path, known_run):
    """The process waits for the earlier one, and reads the state of the lines after the wait."""
    metrics = tmp_path / "metrics.jsonl"
    with (known_run / "wandb.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        tracker = started(SERVICE)
        waiting = re.compile(rf"-> FLOCK +ADVISORY +WRITE {tracker._process.pid} ")
        until(lambda: waiting.search(Path("/proc/locks").read_text()))
        (known_run / "wandb.json").write_text(json.dumps({"id": "a-run", "sent": metrics.stat().st_size}))
    with metrics.open("a") as file:
        file.write(json.dumps({**EVENT, "step": 2, "loss": 1.0}) + "\n")
    tracker.close()
    assert said == ["wandb: a-run"]
    assert (known_run / "wandb.log").read_text().split("\n") == ["made", "artifact", "artifact", "log 2", "finish", ""]


def test_a_training_that_is_gone_does_not_stop_the_last_lines(started, known_run):
    """Nobody reads the address of the service."""
    tracker = started(SERVICE)
    tracker._process.stdout.close()
    tracker._process.stdin.close()
    tracker._process.wait(60)
    assert (known_run / "wandb.log").read_text().split("\n")[:5] == ["made", "artifact", "artifact", "log 1", "finish"]


@pytest.mark.parametrize("is_running", [True, False])
def test_an_attached_file_leaves_the_lines_to_the_process_of_a_running_run(
    tmp_path, monkeypatch, known_run, is_running
):
    monkeypatch.setattr(module, "_PROGRAM", ("-c", SERVICE))
    with (known_run / "wandb.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX if is_running else fcntl.LOCK_UN)
        attach(tmp_path, tmp_path / "report")
    calls = (known_run / "wandb.log").read_text().split("\n")
    assert calls == ["made", "artifact", "artifact", *["log 1"] * (not is_running), "artifact", "finish", ""]
    sent = json.loads((known_run / "wandb.json").read_text())["sent"]
    assert sent == (0 if is_running else (tmp_path / "metrics.jsonl").stat().st_size)


# ------------------------------------------------------------------------------------------------ whole runs


PROGRAM = str(ROOT / "tests" / "small_digits.py")


def small_run(data, run, *settings):
    words = ["--recipe", "digits", "--data", data, "--output", run]
    sets = ["length=8ep", "logging.every=5st", "checkpoint.every=10st", *settings]
    return [launcher.PYTHON, PROGRAM, "train", *words, *(word for text in sets for word in ("--set", text))]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # MLflow's own.
def test_a_killed_and_resumed_run_with_trackers_is_the_run_without(start_command, run_command, tmp_path, digits_folder):
    """Both trackers have every step of both starts in one run. No process is left."""
    env = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    import mlflow

    client = mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"])
    client.search_experiments()  # The first use makes the tables of the store, which takes long on a busy machine.
    plain, tracked = tmp_path / "plain", tmp_path / "tracked"
    assert run_command(small_run(digits_folder, plain)).returncode == 0
    tracking = small_run(digits_folder, tracked, "logging.sinks=[wandb, mlflow]")
    first = start_command(tracking, env=env, cwd=tmp_path)
    states = [tracked / "trackers" / f"{name}.json" for name in ("wandb", "mlflow")]
    first.wait_for(lambda: (tracked / "metrics.jsonl").exists() and len(lines(tracked)) > 6)
    first.process.send_signal(signal.SIGKILL)
    first.finish(grace=90)  # Both processes send the lines so far, and end.
    ids = [json.loads(path.read_text())["id"] for path in states]
    result = run_command(tracking, env=env, cwd=tmp_path)
    assert result.returncode == 0, result.output
    assert not any(f"{name} failed" in result.output for name in ("wandb", "mlflow"))
    assert digest(tracked) == digest(plain)
    assert [json.loads(path.read_text())["id"] for path in states] == ids
    assert len(list(tracked.glob(f"wandb/*-{ids[0]}"))) == 2
    steps = {metric.step for metric in client.get_metric_history(ids[1], "train/loss")}
    assert steps == {event["step"] for event in lines(plain) if event["event"] == "train"}
    assert client.get_run(ids[1]).info.status == "FINISHED"
