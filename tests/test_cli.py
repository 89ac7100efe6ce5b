"""Arguments, and how commands begin: checks without torch, the rank that prints, and torchrun's error file."""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import seresnext.distributed
from seresnext import cli
from seresnext.distributed import World
from seresnext.errors import UsageError
from seresnext.process import ranks as process_ranks
from seresnext.process.signals import StopRequest

ROOT = Path(__file__).parents[1]
TORCHRUN = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "x"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_ERROR_FILE", *TORCHRUN):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ranks(monkeypatch):
    """`ranks(3)`: this is rank 3 of torchrun's 8 on one machine; `ranks(3, WORLD_SIZE="16")` on one of two."""

    def be(rank, **more):
        for name, value in {"RANK": str(rank), "LOCAL_RANK": str(rank % 8), **TORCHRUN, **more}.items():
            monkeypatch.setenv(name, value)

    return be


@pytest.fixture
def fails(capsys):
    """`fails(code, *arguments) -> stderr` of a command, by default `train`, in this process."""

    def run(code, *arguments, stop=None):
        words = list(arguments) if arguments[0] in ("train", "validate") else ["train", *arguments]
        found = cli.main(words, stop or StopRequest())
        output = capsys.readouterr()
        assert (found, output.out) == (code, ""), output.err
        return output.err

    return run


LIGHT = """
import json, sys
from seresnext.cli import COMMANDS, main
from seresnext.process.signals import StopRequest

for command, code in json.loads(sys.argv[1]):
    assert main(command, StopRequest()) == code, command
    assert not {"torch", "numpy"} & sys.modules.keys(), command
"""
COMMANDS = [
    (["--help"], 0),
    (["--recipe", "seresnext50", "--print-recipe"], 0),
    (["--recipe", "seresnext50", "--diff", "seresnext101"], 0),
    (["--recip", "seresnext50"], 2),
    (["--recipe", "seresnext5o"], 2),
    (["--recipe", "x" * 300], 2),
    (["--recipe", "seresnext50", "--set", "optimizer.learning=3"], 2),
    (["--recipe", "seresnext50", "--lr", "3"], 2),
    (["--recipe", "seresnext50", "--data", "nowhere"], 3),
    (["--recipe", "seresnext50", "--data", "nowhere", "--dry-run"], 3),
    (["--recipe", "seresnext50", "--data", "recipes", "--resume", "nowhere"], 2),
    (["--recipe", "seresnext50", "--data", "recipes", "--resume", "recipes"], 2),
    (["--checkpoint", "nowhere"], 4),
    (["--checkpoint", "README.md", "--data", "nowhere"], 3),
    (["--checkpoint", "README.md", "--help"], 0),
]


def test_mistakes_are_found_before_torch_is_imported(run_command):
    commands = [(["validate" if "--checkpoint" in words else "train", *words], code) for words, code in COMMANDS]
    commands += [([*name.split(), "--help"], 0) for name in cli.COMMANDS]
    commands += [(["--help"], 0), (["prepare", "--help"], 0), (["--version"], 0), ([], 2), (["trian"], 2)]
    commands += [(["prepare", "imagenet", "--nonsense"], 2)]
    result = run_command([sys.executable, "-c", LIGHT, json.dumps(commands)])
    assert result.returncode == 0, result.output


@pytest.fixture
def reached(monkeypatch):
    """The devices of the commands that got as far as the import of torch."""
    times = []

    @contextmanager
    def world(device):
        times.append(device)
        raise UsageError("reached")
        yield

    monkeypatch.setattr(seresnext.distributed, "open_world", world)
    return times


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "data.format=synthetic", "--set", "data.synthetic_images=9999"],
        ["--data", "https://host/path", "--set", "data.format=shards"],
        ["--data", "recipes", "--resume", "README.md", "--device", "cpu"],
    ],
)
def test_data_that_may_be_missing(fails, reached, arguments):
    assert "reached" in fails(2, "--recipe", "seresnext50", *arguments)
    assert reached == ["cpu" if "cpu" in arguments else "auto"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "--help"), "digits, finetune, seresnext101, "),
        (("validate", "--help"), "docs/evaluation.md"),
        (("train", "--recipe", "seresnext50", "--print-recipe"), "# recipes/_base/imagenet.yaml:"),
        (("train", "--recipe", "seresnext50", "--diff", "seresnext101"), "model.name: seresnext50 -> seresnext101"),
    ],
)
def test_one_rank_prints_the_help_and_the_recipe(capsys, ranks, words, expected):
    for rank in range(2):
        ranks(rank)
        assert cli.main(words, StopRequest()) == 0
        text = capsys.readouterr().out
        assert (expected in text) == bool(text) == (rank == 0)
        assert "--help" not in words or max(map(len, text.splitlines()), default=0) <= 120


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--lr 3 --epochs=9", "error: unrecognized arguments: --lr 3 --epochs=9; give a key of the recipe as --set K"),
        ("--profile five", "argument --profile: 'five' is not a whole number of at least 1"),
        ("--profile 3 --dry-run", "--dry-run takes a few steps and traces none; leave out --dry-run or --profile"),
    ],
)
def test_options_that_are_refused(fails, words, problem):
    assert problem in fails(2, "--recipe", "seresnext50", *words.split())


NOWHERE = ("--recipe", "seresnext50", "--data", "nowhere")


def box(path, code):
    """Return the text that torchrun prints for a failed worker, made by torchrun's own classes."""
    return str(ChildFailedError("train.py", {3: ProcessFailure(3, 17, code, str(path))}))


@pytest.mark.parametrize(("rank", "start"), [(0, "error: "), (3, "error (rank 3): ")])
def test_a_problem_of_one_rank_alone_is_printed_with_the_rank(fails, ranks, monkeypatch, tmp_path, rank, start):
    """The first rank prints for all. Rank 3 prints because the first rank has not ended the others. The box agrees."""
    monkeypatch.setattr(process_ranks, "_FIRST_RANKS_TIME", 0.1)
    path = tmp_path / "file"
    ranks(rank, TORCHELASTIC_ERROR_FILE=str(path))
    assert "N/A" in box(path, 3)  # The control: no error file is written yet.
    message = fails(3, *NOWHERE)
    assert message.startswith(start)
    assert "nowhere" in message
    assert "nowhere" in box(path, 3).partition("traceback : ")[2]
    assert "N/A" not in box(path, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_other_ranks_wait_to_be_ended(ranks, capsys):
    """torchrun ends all workers when one has ended. The first rank must be able to print before that."""
    ranks(3)
    stop = StopRequest()
    with stop:
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        before = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
        try:
            assert cli.main(["train", *NOWHERE], stop) == 3
        finally:
            signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started > 0.3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "start"), [(0, "error: "), (8, ""), (11, "")])
def test_machines_meet_before_a_failure_is_raised(fails, ranks, monkeypatch, rank, start):
    """Other machines may have the folder, and would wait for the ranks of this machine."""
    met = []

    @contextmanager
    def world(device):
        met.append(device)
        yield World()

    monkeypatch.setattr(seresnext.distributed, "open_world", world)
    ranks(rank, WORLD_SIZE="16")
    message = fails(3, *NOWHERE)
    assert met == ["auto"]
    assert message.startswith(start)
    assert bool(message) is bool(start)


@pytest.mark.parametrize(("rank", "start"), [(0, "error: reached"), (8, "error (rank 8): reached"), (3, "")])
def test_before_the_ranks_have_met_the_first_of_each_machine_prints(fails, ranks, reached, rank, start):
    """One such problem is a GPU that torch does not see: all ranks of a machine find the same."""
    ranks(rank, WORLD_SIZE="16")
    with StopRequest() as stop:
        if rank == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        message = fails(2, "--recipe", "seresnext50", "--data", "recipes", stop=stop)
    assert message.startswith(start)
    assert bool(message) is bool(start)


def test_the_box_has_the_traceback_of_a_defect(ranks, monkeypatch, tmp_path):
    ranks(0, TORCHELASTIC_ERROR_FILE=str(tmp_path / "file"))
    monkeypatch.setattr("seresnext.recipe.load_recipe", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", *NOWHERE], StopRequest())
    assert "ZeroDivisionError: division by zero" in box(tmp_path / "file", 1)


def test_a_box_that_cannot_be_written_changes_nothing(fails, ranks, tmp_path):
    ranks(0, TORCHELASTIC_ERROR_FILE=str(tmp_path / "none" / "file"))
    assert fails(3, *NOWHERE).startswith("error: ")


SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts").glob("[a-z]*.py"))
OTHERS = ["-m seresnext prepare digits", "-m seresnext models", "-m seresnext recipe", "-m seresnext.torchrun train.py"]


@pytest.mark.parametrize(
    "command", ["train.py --recipe seresnext50", "validate.py --checkpoint README.md", *OTHERS, *SCRIPTS]
)
def test_a_python_without_packages(run_command, command):
    """-S hides the installed packages."""
    result = run_command([sys.executable, "-S", *command.split()])
    assert result.returncode == 2, result.output
    (line,) = result.output.splitlines()
    assert line.startswith(f"error: {sys.executable} ")
    assert "torch" in line
    assert "run `bash scripts/setup.sh` and `source .venv/bin/activate`" in line


@pytest.mark.parametrize(
    ("words", "code", "state"),
    [([], 3, "failed"), (["--nonsense"], 2, "failed"), (["--device", "nonsense"], 2, "preempted")],
)
def test_a_refusal_before_torch_is_recorded_in_the_run_folder(fails, tmp_path, words, code, state):
    """With a wrong value of an option the folder is not known."""
    (tmp_path / "status.json").write_text('{"state": "preempted", "step": 3}')
    fails(code, *NOWHERE, "--output", str(tmp_path), *words)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == state
