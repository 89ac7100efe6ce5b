"""The real libraries: runs are read back from the store of MLflow and the files of W&B, and MLflow's page is opened."""

import json
import socket
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
from browser import needs_chromium, open_browser
from PIL import Image

from seresnext.metrics import tracker as module
from seresnext.metrics.services import Mlflow
from seresnext.metrics.sink import RunStart
from seresnext.metrics.tracker import Tracker, attach
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml

# MLflow's own warnings, about SQLAlchemy, are no errors of a test.
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def tracked(tmp_path):
    """The folder of a run that has drawn its first batch, with a report."""
    folder = tmp_path / "first"
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "index.html").write_text("<p>a page</p>")
    (folder / "recipe.yaml").write_text(to_yaml(to_values(load_recipe("digits").recipe)))
    (folder / "environment.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"event": "picture", "step": 0, "epoch": 0}\n')
    Image.new("RGB", (8, 8), "red").save(folder / "first_batch.png")
    return folder


@pytest.fixture
def follow(tracked):
    """`follow(name, *events, state)`: start a tracker, write the events, and end as a run ends. Return the reports."""

    def follow(name, *events, state="running"):
        said = []
        tracker = Tracker(name, RunStart(tracked, 0, 0, 0, said.append))
        with (tracked / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
        (tracked / "status.json").write_text(json.dumps({"state": state}))
        tracker.close()
        return said

    return follow


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The store that the variables of mlflow name, next to a run folder."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # mlflow sets the variable for child processes; the end unsets it.
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.chdir(tmp_path)
    for name in ("PATIENCE", "STOPPED_PATIENCE"):  # The first start makes the tables of the store.
        monkeypatch.setattr(module, name, 240.0)
    return uri


@pytest.fixture
def client(place):
    import mlflow  # Here, since each process of the tests imports all test modules, and mlflow takes a second.

    return mlflow.MlflowClient(place)


def train(step):
    return {"event": "train", "step": step, "epoch": step / 10, "loss": 3.0 - step / 10, "lr": 0.5, "data_wait": 0.1}


def validate(step, weights="model"):
    return {"event": "validate", "step": step, "epoch": step / 10, "loss": 1.0, "top1": 60.0, "weights": weights}


def points(client, run_id, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_a_run_its_resume_and_its_report_are_one_run_of_the_store(place, client, tracked, follow):
    said = follow("mlflow", train(1), train(2), validate(2), state="preempted")
    (run,) = client.search_runs([client.get_experiment_by_name("seresnext").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "KILLED")
    assert said == [f"mlflow: run {run.info.run_id} in {place}"]
    assert "warning" not in str(follow("mlflow", train(3), validate(3, "ema"), state="finished"))
    attach(tracked, tracked / "report")
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert points(client, run.info.run_id, "train/loss") == [(1, 2.9), (2, 2.8), (3, 2.7)]
    assert points(client, run.info.run_id, "validate_ema/top1") == [(3, 60.0)]
    assert run.data.metrics.keys() == {
        "train/loss", "train/lr", "speed/data_wait", "validate/loss", "validate/top1", "validate_ema/loss",
        "validate_ema/top1",
    }  # fmt: skip
    assert (run.data.params["optimizer.lr"], run.data.params["model.name"]) == ("0.01", "seresnext26")
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert files == {"environment.json", "first_batch.png", "recipe.yaml", "report"}


def test_a_changed_recipe_continues_the_run(client, tracked):
    """MLflow refuses a parameter with another value."""
    values = {"optimizer.lr": 0.5, "length": "4ep"}
    first = Mlflow(tracked, None, values)
    first.finish("finished")
    second = Mlflow(tracked, first.id, {**values, "optimizer.lr": 0.25, "runtime.seed": 1})
    second.finish("finished")
    assert second.id == first.id
    third = Mlflow(tracked, "' OR 'a' = 'a", values)  # An id from a damaged file is no id.
    third.finish("finished")
    assert third.id != first.id
    params = client.get_run(first.id).data.params
    assert params == {"optimizer.lr": "0.5", "length": "4ep", "runtime.seed": "1"}


@pytest.mark.parametrize("answers", [True, False], ids=["refuses", "hangs"])
def test_a_server_that_does_not_answer_is_one_warning(tracked, monkeypatch, answers):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if not answers:  # The system accepts the connection, and nobody reads.
            server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(module, "PATIENCE", 12.0)
        said, started = [], time.monotonic()
        tracker = Tracker("mlflow", RunStart(tracked, 0, 0, 0, said.append))
        tracker.write(train(1))
        assert time.monotonic() - started < 10
        tracker.close()
    assert time.monotonic() - started < 40
    assert len(said) == 1
    assert said[0].startswith("warning: ")


@needs_chromium
def test_the_page_of_a_run_shows_its_charts_in_groups(place, client, follow, tmp_path, start_command):
    follow("mlflow", *(train(step) for step in range(1, 9)), validate(8), state="finished")
    (run,) = client.search_runs([client.get_experiment_by_name("seresnext").experiment_id])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start_command(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place, "--port", str(port), "--workers", "1"],
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=tmp_path,
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        with suppress(OSError):
            return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
        return False

    server.wait_for(answers, timeout=120)
    (tmp_path / "browser").mkdir()
    with open_browser(tmp_path / "browser") as browser:
        path = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/model-metrics"
        page = browser.open(f"{address}/#/{path}", height=3000)  # The page draws only the charts that are in view.
        missing = {"first (validate/top1)", "first (train/loss)", "first (train/lr)", "first (speed/data_wait)"}
        missing |= {"train\n(2)", "validate\n(2)"}
        deadline = time.monotonic() + 90
        while missing and time.monotonic() < deadline:
            time.sleep(0.5)
            text = page.evaluate("document.body.innerText")
            missing = {words for words in missing if words not in text}
    assert missing == set()


# ------------------------------------------------------------------------------------------------ Weights & Biases


_BLOCK, _HEADER = 32 << 10, 7


def records(path):
    """Yield the records of a file of wandb.

    The file is a log of LevelDB after 7 bytes: blocks of 32 KiB with parts, each after a checksum (4 bytes), a length
    (2) and a type (1: whole, 2: first, 3: middle, 4: last)
    (https://github.com/google/leveldb/blob/main/doc/log_format.md).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place < len(data):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def content(path):
    """Return the run record, the points of the training loss, the artifacts, the exit code and the keys of a file."""
    run, points, artifacts, code, keys = None, [], [], None, set()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or record.run
        elif kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            points += [(row["_step"], row["train/loss"])] if "train/loss" in row else []
        elif kind == "artifact":
            artifacts.append((record.artifact.name, record.artifact.type))
        elif kind == "exit":
            code = record.exit.exit_code
        keys |= {item.key or "/".join(item.nested_key) for item in (*record.config.update, *record.run.config.update)}
    return run, points, artifacts, code, keys


def test_each_start_has_a_file_with_the_same_run(tracked, follow, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = [*follow("wandb", train(1), train(2), state="failed"), *follow("wandb", train(3), state="finished")]
    attach(tracked, tracked / "report")
    (known,) = {json.loads((tracked / "trackers" / "wandb.json").read_text())["id"]}
    files = sorted(tracked.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [path.name for path in files] == [f"run-{known}.wandb"] * 3
    assert len(said) == 2
    assert all(line.startswith("wandb: offline, wandb sync ") for line in said)
    (first, points, artifacts, code, keys), (second, more, _, end, _), (third, none, page, *_) = map(content, files)
    assert {run.run_id for run in (first, second, third)} == {known}
    assert (first.display_name, first.project) == ("first", "seresnext")
    assert (points, more, none) == ([(1, 2.9), (2, 2.8)], [(3, 2.7)], [])
    assert (code, end) == (1, 0)
    assert artifacts == [(f"{known}-recipe", "run"), (f"{known}-environment", "run")]
    assert (f"{known}-report", "report") in page
    assert list(tracked.glob("wandb/offline-run-*/files/media/images/train/first_batch*.png"))
    assert {"optimizer.lr", "model.name"} <= keys


def test_an_unknown_key_of_the_server_is_one_warning(follow, monkeypatch):
    """Nothing asks a user, and nothing waits for a network."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(module, "PATIENCE", 8.0)
    said = follow("wandb", train(1), state="finished")
    assert len(said) == 1
    assert said[0].startswith("warning: ")
