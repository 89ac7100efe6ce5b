"""A run with a tracking service: its folder, and its events from the start of the tracker to the end."""

import json

import pytest
from PIL import Image

from seresnext.metrics.sink import RunStart
from seresnext.metrics.tracker import Tracker
from seresnext.recipe.load import load_recipe, to_values
from seresnext.recipe.show import to_yaml


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
