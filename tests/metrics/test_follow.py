"""Lines and files that a tracker's process sends from a run folder, to a service that keeps everything in memory."""

import itertools
import json
from unittest.mock import Mock, call

import pytest

from seresnext.metrics import follow as module
from seresnext.metrics.follow import Follower, follow
from seresnext.metrics.sink import charts, flatten
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml


@pytest.fixture
def runs(monkeypatch):
    """The runs of a service by id, as mocks."""
    runs, numbers = {}, itertools.count()

    def connect(folder, known, values):
        name = known if known in runs else f"run-{next(numbers)}"
        return runs.setdefault(name, Mock(id=name, address="memory"))

    monkeypatch.setitem(module.SERVICES, "wandb", connect)
    return runs


@pytest.fixture
def folder(tmp_path, runs):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "recipe.yaml").write_text(to_yaml(to_values(load_recipe("digits").recipe)))
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    return tmp_path


def train(step):
    return json.dumps({"event": "train", "step": step, "epoch": step / 10, "loss": float(step), "skipped": 0}) + "\n"


def append(folder, text):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def opened(folder, size=None):
    metrics = folder / "metrics.jsonl"
    size = size if size is not None else metrics.stat().st_size if metrics.exists() else 0
    return Follower("wandb", folder, size, lambda text: None)


def logged(run):
    return [step for _, step, _ in (each.args for each in run.log.mock_calls)]


def test_every_whole_line_is_sent_once(folder, runs):
    (folder / "metrics.jsonl").unlink()  # A new run has no line yet.
    follower = opened(folder)
    follower.catch_up()
    garbage = 'no JSON\n[1]\n{"event": "train", "step": 1e999, "epoch": 1, "loss": 1.0}\n'
    append(folder, '{"event": "picture", "step": 0, "epoch": 0}\n' + train(1) + garbage + train(2)[:-9])
    follower.catch_up()
    assert logged(runs["run-0"]) == [1]
    append(folder, train(2)[-9:])
    follower.catch_up()
    follower.catch_up()
    follow(follower, lambda error: pytest.fail(str(error)), lambda pause: True)
    assert runs["run-0"].mock_calls == [
        call.artifact(folder / "recipe.yaml"),
        call.artifact(folder / "environment.json"),
        call.picture(folder / "first_batch.png"),
        call.log({"train/loss": 1.0}, 1, 0.1),
        call.log({"train/loss": 2.0}, 2, 0.2),
        call.finish("finished"),
    ]


def test_a_resume_continues_the_run_and_repeats_what_the_file_repeats(folder, runs):
    append(folder, train(1) + train(2) + train(3))
    opened(folder).catch_up()
    kept = train(1) + train(2)  # The resumed run starts after step 2, and writes more before the process looks.
    (folder / "metrics.jsonl").write_text(kept + train(3) + train(4))
    opened(folder, len(kept)).catch_up()
    assert logged(runs.pop("run-0")) == [1, 2, 3, 3, 4]
    assert runs == {}
    opened(folder).catch_up()  # This server does not know the run, and gets all lines.
    assert logged(runs["run-1"]) == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["[]", "{", '{"id": 7, "sent": "all"}', '{"id": null, "sent": -5}', '{"sent": true}'])
def test_a_state_from_a_stranger_is_no_state(folder, runs, text):
    (folder / "trackers" / "wandb.json").write_text(text)
    append(folder, train(1))
    opened(folder).catch_up()
    assert logged(runs["run-0"]) == [1]


@pytest.mark.parametrize("kind", [ConnectionError, json.JSONDecodeError])
def test_errors_are_reported_and_no_line_is_lost(folder, runs, kind):
    """An answer that is no JSON, of a proxy, is a ValueError, as is a line that is no event."""
    pauses, errors = [], []

    def is_over(pause):
        pauses.append(pause)
        append(folder, train(len(pauses)))
        for run in runs.values():
            run.log.side_effect = kind("the server is gone", "", 0) if 2 <= len(pauses) <= 3 else None
        return len(pauses) == 5

    follow(opened(folder), errors.append, is_over)
    assert pauses == [0, module._POLL, module._RETRY, module._RETRY, module._POLL]
    assert [type(error) for error in errors] == [kind] * 2
    assert logged(runs["run-0"]) == [1, 2, 2, 2, 3, 4, 5]  # The second line fails twice.
    assert runs["run-0"].mock_calls[-1] == call.finish("finished")


def test_charts_have_the_numbers_that_change():
    recipe = to_values(load_recipe("digits").recipe)
    event = {"event": "train", "step": 5, "epoch": 0.5, "loss": None, "top1": 50.0, "skipped": 0, "data_wait": 0.1}
    assert charts({**event, "total_steps": 9}, recipe) == {"train/top1": 50.0, "speed/data_wait": 0.1}
    assert charts({**event, "skipped": 1}, recipe)["train/skipped"] == 1
    validate = {"event": "validate", "step": 5, "loss": 1.0, "top5": 100.0, "num_images": 9, "images_per_second": 2.0}
    assert charts({**validate, "weights": "ema"}, recipe) == {"validate_ema/loss": 1.0, "validate_ema/top5": 100.0}
    assert "validate/top5" not in charts(validate, {"model": {"num_classes": 5}})
    assert charts({"event": "epoch", "step": 5, "loss": 2.0}, recipe) == {"train/epoch_loss": 2.0}
    assert charts({"event": "slowest_rank", "step": 5, "rank": 1, "slower": 0.2}, recipe) == {
        "speed/slowest_rank_slower": 0.2
    }
    assert charts({"event": "skipped", "step": 5, "loss": 2.0}, recipe) == {}


def test_parameters_are_dotted_keys():
    flat = flatten(to_values(load_recipe("digits", ["ema.decay=0.9"]).recipe))
    assert (flat["optimizer.lr"], flat["ema.decay"], flat["length"]) == (0.01, 0.9, "8ep")
    assert (flat["model.frozen"], flat["data.cache"], flat["runtime.seed"]) == ("[]", "null", 0)
