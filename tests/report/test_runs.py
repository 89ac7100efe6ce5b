"""`seresnext runs`: the table of run folders, also of folders from strangers and of runs that were killed."""

import json
import os
import socket
import subprocess

import pytest
from conftest import command

from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml


@pytest.fixture
def make(tmp_path):
    """`make(name, settings, **status)` writes the files of a run."""

    def make(name, *settings, **status):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        recipe = load_recipe("digits", settings).recipe
        (folder / "recipe.yaml").write_text(to_yaml(to_values(recipe)))
        (folder / "status.json").write_text(json.dumps({"state": "finished", **status}))
        return folder

    return make


@pytest.fixture
def table(tmp_path, capsys):
    """`table()` returns the words of each line and the content of the JSON file."""

    def table():
        found = tmp_path / "runs.json"
        assert command("runs", tmp_path / "runs", "--json", found) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()], json.loads(found.read_text())

    return table


def test_runs_are_listed_by_accuracy_with_the_keys_that_differ(make, table):
    times = {"started": "2026-01-01T10:00:00+00:00", "updated": "2026-01-01T11:30:00+00:00"}
    best = {"step": 20, "top1": 61.5, "weights": "model"}
    make("slow", "optimizer.lr=0.25", step=40, total_steps=1000, best=best, **times)
    make("deep/fast", step=40, total_steps=40, best={**best, "top1": 80, "weights": "ema"})
    make("new", "length=3ep")
    (header, first, second, third), values = table()
    assert header == ["run", "state", "step", "best", "at", "step", "time", "length", "optimizer.lr"]
    assert first == ["deep/fast", "finished", "40", "of", "40", "top-1", "80.00", "%", "(ema)", "20", "8ep", "0.01"]
    assert second == ["slow", "finished", "40", "of", "1,000", "top-1", "61.50", "%", "20", "1:30:00", "8ep", "0.25"]
    assert third == ["new", "finished", "3ep", "0.01"]
    by_name = {os.path.basename(run["run"]): run for run in values}  # noqa: PTH119
    assert (by_name["slow"]["seconds"], by_name["slow"]["recipe"]["optimizer.lr"]) == (5400.0, 0.25)
    assert by_name["new"]["top1"] is None


def test_the_best_is_shown_by_its_measure(make, table):
    best = {"step": 20, "top1": 61.5, "weights": "model"}
    make("a", "evaluation.best_by=macro_f1", best={**best, "macro_f1": 40.25, "by": "macro_f1"})
    make("b", "evaluation.best_by=top1", best={**best, "top1": 60.0, "by": "top1"})
    make("odd", best={**best, "top1": 1.0, "by": "macro_f1"})
    (_, *rows), values = table()
    assert rows[0][2:] == ["macro", "F1", "40.25", "%", "20", "macro_f1"]
    assert [run["best"] for run in values] == ["macro F1 40.25 %", "top-1 60.00 %", None]


def test_a_run_whose_process_is_gone_was_killed(make, table):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here, pids = socket.gethostname(), {"gone": ended.pid, "alive": os.getpid(), "init": 1, "odd": 2**70}
    for name, pid in {**pids, "none": None}.items():
        make(name, state="running", host=here, pid=pid)
    make("elsewhere", state="running", host=f"not-{here}", pid=ended.pid)
    lines, _ = table()
    states = {line[0]: line[1] for line in lines[1:]}
    assert states == {
        "gone": "killed", "odd": "killed", "none": "killed",
        "alive": "running", "init": "running", "elsewhere": "running",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "recipe"),
    [
        ("", "model: ["),
        ("[1]", "a: b"),
        ('{"state": "\\u001b[31mred", "best": {"top1": NaN, "step": "x"}, "step": 1.5}', "[" * 100_000),
        ('{"best": {"top1": 1' + "0" * 400 + "}}", "a: b"),
        (None, None),  # Pipes without a writer have no end.
        ('{"best": [1], "started": 7, "updated": "never", "pid": -1, "state": 7, "host": null}', "\x00"),
    ],
)
def test_damaged_files_leave_cells_empty(make, table, status, recipe):
    make("good", best={"step": 1, "top1": 5.0, "weights": "model"})
    bad = make("bad")
    for path, text in ((bad / "status.json", status), (bad / "recipe.yaml", recipe)):
        path.unlink()
        path.write_text(text) if text is not None else os.mkfifo(path)
    lines, values = table()
    assert [line[0] for line in lines] == ["run", "good", "bad"]
    assert not any("\x1b" in word for line in lines for word in line)
    assert {run["top1"] for run in values} == {5.0, None}


def test_many_keys_that_differ_are_counted(make, table):
    make("one")
    make("two", *(f"optimizer.{text}" for text in ("lr=0.2", "momentum=0.5", "weight_decay=0.2", "nesterov=true")),
         *(f"runtime.{text}" for text in ("seed=1", "deterministic=true", "loader_timeout=5", "collective_timeout=5")),
         "model.drop_rate=0.5", "length=3ep")  # fmt: skip
    lines, _ = table()
    assert lines[-1][:4] == ["2", "more", "keys", "differ:"]


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert command("runs", folder) == 3
        assert "give a folder" in capsys.readouterr().err
