"""Lines and files that a tracker's process sends from a run folder, to a service that keeps everything in memory."""

import json

import pytest

from seresnext.metrics import follow as module
from seresnext.metrics.follow import Follower, follow
from seresnext.metrics.sink import charts, flatten
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml


class Service:
    """A service with runs by id. `broken` is the error of `log`, if there is one."""

    runs: dict[str, list[tuple]]
    broken = None
    address = "memory"

    def __init__(self, folder, known, values):
        self.id = known if known in self.runs else f"run-{len(self.runs)}"
        self.calls = self.runs.setdefault(self.id, [])
        self.values = values

    def log(self, numbers, step, epoch):
        if Service.broken:
            raise Service.broken("the server is gone\nsecond line")
        self.calls.append(("log", step, numbers))

    def picture(self, path):
        self.calls.append(("picture", path.name))

    def artifact(self, path):
        self.calls.append(("artifact", path.name))

    def finish(self, state):
        self.calls.append(("finish", state))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(module.SERVICES, "wandb", Service)
    monkeypatch.setattr(Service, "runs", {}, raising=False)
    monkeypatch.setattr(Service, "broken", None)
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


def logged(name="run-0"):
    return [call[1] for call in Service.runs[name] if call[0] == "log"]


def test_every_whole_line_is_sent_once(folder):
    (folder / "metrics.jsonl").unlink()  # A new run has no line yet.
    follower = opened(folder)
    follower.catch_up()
    garbage = 'no JSON\n[1]\n{"event": "train", "step": 1e999, "epoch": 1, "loss": 1.0}\n'
    append(folder, '{"event": "picture", "step": 0, "epoch": 0}\n' + train(1) + garbage + train(2)[:-9])
    follower.catch_up()
    assert logged() == [1]
    append(folder, train(2)[-9:])
    follower.catch_up()
    follower.catch_up()
    follow(follower, lambda error: pytest.fail(str(error)), lambda pause: True)
    assert Service.runs["run-0"] == [
        ("artifact", "recipe.yaml"),
        ("artifact", "environment.json"),
        ("picture", "first_batch.png"),
        ("log", 1, {"train/loss": 1.0}),
        ("log", 2, {"train/loss": 2.0}),
        ("finish", "finished"),
    ]


def test_a_resume_continues_the_run_and_repeats_what_the_file_repeats(folder):
    append(folder, train(1) + train(2) + train(3))
    opened(folder).catch_up()
    kept = train(1) + train(2)  # The resumed run starts after step 2, and writes more before the process looks.
    (folder / "metrics.jsonl").write_text(kept + train(3) + train(4))
    opened(folder, len(kept)).catch_up()
    assert Service.runs.keys() == {"run-0"}
    assert logged() == [1, 2, 3, 3, 4]
    Service.runs["another"] = Service.runs.pop("run-0")
    opened(folder).catch_up()  # This server does not know the run, and gets all lines.
    assert logged("run-1") == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["[]", "{", '{"id": 7, "sent": "all"}', '{"id": null, "sent": -5}', '{"sent": true}'])
def test_a_state_from_a_stranger_is_no_state(folder, text):
    (folder / "trackers" / "wandb.json").write_text(text)
    append(folder, train(1))
    opened(folder).catch_up()
    assert logged() == [1]


@pytest.mark.parametrize("kind", [ConnectionError, json.JSONDecodeError])
def test_errors_are_reported_and_no_line_is_lost(folder, kind):
    """An answer that is no JSON, of a proxy, is a ValueError, as is a line that is no event."""
    pauses, errors = [], []

    def is_over(pause):
        pauses.append(pause)
        append(folder, train(len(pauses)))
        Service.broken = (lambda text: kind(text, "", 0)) if 2 <= len(pauses) <= 3 else None
        return len(pauses) == 5

    follow(opened(folder), errors.append, is_over)
    assert pauses == [0, module._POLL, module._RETRY, module._RETRY, module._POLL]
    assert [type(error) for error in errors] == [kind] * 2
    assert logged() == [1, 2, 3, 4, 5]
    assert Service.runs["run-0"][-1] == ("finish", "finished")


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
