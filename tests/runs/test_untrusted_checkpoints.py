"""Checkpoints of this project with a right digest and impossible metadata: refused before a costly step.

See tests/resource_probe.py for how memory and time are known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_checkpoints import changed, json_text, write_checkpoint
from resource_probe import Probe, assert_refused

pytestmark = pytest.mark.runs


def predict(file: Path, images: Path) -> tuple[str | Path, ...]:
    return "seresnext/__main__.py", "predict", "--checkpoint", file, images / "val/class_0/0.jpg"


SAYS = {
    "classes without end": {"recipe.model.num_classes": 10**9},
    "more classes than its tensors": {"recipe.model.num_classes": 10**6},
    "another model": {"recipe.model.name": "seresnext101"},
    "channels": {"recipe.model.in_channels": 10**6},
    "a path for a model": {"recipe.model.name": "../../\x1b[2Jx"},
    "images at once": {"recipe.batch.micro_size": 10**12, "recipe.batch.global_size": 10**12},
    "crop": {"recipe.evaluation.crop_pct": 1e-9},
    "made-up images": {"recipe.data.format": "synthetic", "recipe.data.synthetic_images": 10**12},
    "mean": {"recipe.data.mean": [float("inf")] * 3},
    "a long number": {"recipe.runtime.seed": 10**4000},
    "a server": {"recipe.data.root": "s3://bucket/x", "recipe.data.format": "shards"},
    "a server by another name": {"recipe.data.root": "simplecache::https://host/x", "recipe.data.format": "shards"},
    "a root that steers": {"recipe.data.root": "/tmp/\x1b[2J"},
    "a root without end": {"recipe.data.root": "/x" * 10**6},
    "unknown keys": {"recipe.\x1b[2J\nx": 1},
    "no recipe": {"recipe": {}},
    "nesting": {"recipe.model": json.loads("[" * 500 + "]" * 500)},
    "classes that are none": {"dataset.classes": [["a"], {}, 3]},
    "weights": {"recipe.evaluation.weights": "../x"},
}


@pytest.mark.parametrize("case", SAYS)
def test_what_a_checkpoint_may_not_say(
    measure: Probe, untrained: Any, metadata: Any, tmp_path: Path, case: str
) -> None:
    values = changed(metadata, SAYS[case])
    texts = {key: json_text(values[key]) for key in ("recipe", "dataset")}
    path = write_checkpoint(tmp_path / "c.safetensors", untrained, metadata, **texts)
    assert_refused(measure("validate.py", "--checkpoint", path))


def test_what_it_may_say(measure: Probe, untrained: Any, metadata: Any, images: Path, tmp_path: Path) -> None:
    """The control for all of the above. Settings of the machine in a checkpoint have no effect."""
    path = write_checkpoint(tmp_path / "c.safetensors", untrained, metadata)
    usual = measure("validate.py", "--checkpoint", path)
    assert usual.returncode == 0, usual.output
    assert f"13 images of {images}/val" in usual.stdout
    greedy = {
        "recipe.data.cache": str(tmp_path / "canary"),
        "recipe.data.workers": 256,
        "recipe.batch.micro_size": 10**7,
        "recipe.batch.global_size": 10**7,
    }
    write_checkpoint(path, untrained, changed(metadata, greedy))
    result = measure("validate.py", "--checkpoint", path)
    assert result.returncode == 0, result.output
    assert not (tmp_path / "canary").exists()
    assert result.megabytes < usual.megabytes + 50
    assert result.stdout.splitlines()[1:-1] == usual.stdout.splitlines()[1:-1]


def test_a_server_is_asked_when_the_user_names_it(
    measure: Probe, untrained: Any, metadata: Any, tmp_path: Path
) -> None:
    """No server listens at the address: the error shows a request with --data, and none without."""
    address = "http://127.0.0.1:9/x"
    path = write_checkpoint(
        tmp_path / "c.safetensors", untrained, changed(metadata, SAYS["a server"] | {"recipe.data.root": address})
    )
    assert "must not choose the server" in assert_refused(measure("validate.py", "--checkpoint", path))
    program = "import sys, seresnext.data.shards.remote as r; r.ATTEMPTS = 1; from seresnext import cli;"
    program += "from seresnext.process.stop_request import StopRequest;"
    program += f"sys.exit(cli.main(['validate', '--checkpoint', {str(path)!r}, '--data', {address!r}], StopRequest()))"
    assert "cannot be read" in assert_refused(measure("-c", program), code=3)


BAD_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "nan": lambda found: found["model.layer2.0.conv1.weight"].view(-1)[5].fill_(float("nan")),
    "infinity": lambda found: found["model.last_linear.bias"][0].fill_(float("inf")),
    "variance": lambda found: found["model.layer1.0.bn1.running_var"][3].fill_(-1e-3),
    "shape": lambda found: found.update({"model.last_linear.weight": torch.ones(3, 2047)}),
    "nothing": lambda found: found.update({"model.last_linear.weight": torch.ones(2**30, 0)}),
    "channels": lambda found: found.update({"model.layer0.conv1.weight": torch.ones(64, 2**20, 0, 0)}),
    "bytes": lambda found: found.update({"model.layer1.0.conv1.weight": torch.ones(128, 64, 1, 1, dtype=torch.int8)}),
    "missing": lambda found: found.pop("model.layer1.0.bn1.running_var"),
    "unknown": lambda found: found.update({"model.\x1b[2J": torch.ones(1)}),
    "of another part": lambda found: found.update({"\x1b[2J.x": torch.ones(1)}),
    "none": lambda found: found.clear(),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_are_no_weights(measure: Probe, untrained: Any, metadata: Any, tmp_path: Path, case: str) -> None:
    found = {name: tensor.clone() for name, tensor in untrained.items()}
    BAD_TENSORS[case](found)
    path = write_checkpoint(tmp_path / "c.safetensors", found, metadata)
    assert_refused(measure("validate.py", "--checkpoint", path), megabytes=300)
    other = write_checkpoint(tmp_path / "d.safetensors", untrained, metadata)
    output = tmp_path / "mean.safetensors"
    average = measure("seresnext/__main__.py", "average", path, other, "--output", output)
    if case not in ("variance", "bytes", "of another part"):  # The mean is refused where it is used.
        assert_refused(average, megabytes=500)
        assert not output.exists()


def test_names_of_classes_do_not_steer_the_terminal(
    measure: Probe, untrained: Any, metadata: Any, images: Path, tmp_path: Path
) -> None:
    """In the answers of `predict`, and where other classes are there than were trained on."""
    names = ["\x1b[2Jcat\n 99.9 %  dog", "\x9b\u202e", "x" * 10**5]
    path = write_checkpoint(tmp_path / "c.safetensors", untrained, changed(metadata, {"dataset.classes": names}))
    answer = measure(*predict(path, images))
    assert answer.returncode == 0, answer.output
    assert all(character.isprintable() or character == "\n" for character in answer.output)
    assert len(answer.stdout.splitlines()) == 4
    assert len(answer.stdout) < 2000
    assert_refused(measure("validate.py", "--checkpoint", path), code=3)
    write_checkpoint(path, untrained, changed(metadata, {"dataset.classes": ["a"]}))
    assert "names 1 classes" in assert_refused(measure(*predict(path, images)), megabytes=300)


PROGRESS = {
    "an unknown key": {"progress.\x1b[2J": 1},
    "another step": {"progress.step": 4},
    "a best of text": {"best": {"step": "4"}},
    "a history of numbers": {"history": [1]},
    "no recipe": {"recipe": {"model": json.loads("[" * 500 + "]" * 500)}},
    "a recipe without end": {"recipe": {f"\x1b{number}": 1 for number in range(100_000)}},
}


@pytest.mark.parametrize("case", PROGRESS)
def test_a_run_does_not_go_on_from_it(
    measure: Probe, untrained: Any, metadata: Any, recipe: Path, images: Path, tmp_path: Path, case: str
) -> None:
    values = changed(metadata, PROGRESS[case])
    path = write_checkpoint(
        tmp_path / "c.safetensors", untrained, {**values, "recipe": {}}, recipe=json_text(values["recipe"])
    )
    arguments = ["--recipe", recipe, "--data", images, "--output", tmp_path / "run", "--resume", path]
    result = measure("train.py", *arguments)
    assert_refused(result, code=3 if case == "a recipe without end" else 4, megabytes=900)
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
