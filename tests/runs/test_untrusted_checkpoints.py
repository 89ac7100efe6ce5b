"""Checkpoints of this project with a right digest and impossible metadata: refused before a costly step.

See tests/resource_probe.py for how memory and time are known.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_checkpoints import changed, write_checkpoint
from resource_probe import Probe, ProbeResult, assert_refused

pytestmark = pytest.mark.runs


Forge = Callable[..., Path]


@pytest.fixture
def forge(untrained: Any, metadata: Any, tmp_path: Path) -> Forge:
    """Write a checkpoint with changed metadata and tensors, and return its path."""

    def write(changes: dict[str, Any], tensors: Any = untrained) -> Path:
        values = changed(metadata, changes)
        text = json.dumps(values["recipe"])
        return write_checkpoint(tmp_path / "c.safetensors", tensors, {**values, "recipe": {}}, recipe=text)

    return write


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
def test_what_a_checkpoint_may_not_say(measure: Probe, forge: Forge, case: str) -> None:
    assert_refused(measure("validate.py", "--checkpoint", forge(SAYS[case])))


def test_what_it_may_say(measure: Probe, forge: Forge, images: Path, tmp_path: Path) -> None:
    """The control for all of the above. Settings of the machine in a checkpoint have no effect."""
    usual = measure("validate.py", "--checkpoint", forge({}))
    assert usual.returncode == 0, usual.output
    assert f"13 images of {images}/val" in usual.stdout
    greedy = {"recipe.data.cache": str(tmp_path / "canary"), "recipe.data.workers": 256}
    greedy |= {"recipe.batch.micro_size": 10**7, "recipe.batch.global_size": 10**7}
    result = measure("validate.py", "--checkpoint", forge(greedy))
    assert result.returncode == 0, result.output
    assert not (tmp_path / "canary").exists()
    assert result.megabytes < usual.megabytes + 50
    shown = [[line.partition(" images, ")[0] for line in each.stdout.splitlines()[1:]] for each in (usual, result)]
    assert shown[0] == shown[1]


def test_a_server_is_asked_when_the_user_names_it(measure: Probe, forge: Forge) -> None:
    """No server listens at the address: the error shows a request with --data, and none without."""
    address = "http://127.0.0.1:9/x"
    path = forge(SAYS["a server"] | {"recipe.data.root": address})
    assert "must not choose the server" in assert_refused(measure("validate.py", "--checkpoint", path))
    program = "import sys, seresnext.remote as r; r.ATTEMPTS = 1; from seresnext import cli;"
    program += "from seresnext.process.signals import StopRequest;"
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
@pytest.mark.full
def test_tensors_that_are_no_weights(measure: Probe, forge: Forge, untrained: Any, tmp_path: Path, case: str) -> None:
    found = {name: tensor.clone() for name, tensor in untrained.items()}
    BAD_TENSORS[case](found)
    other, path = forge({}).rename(tmp_path / "d.safetensors"), forge({}, found)
    assert_refused(measure("validate.py", "--checkpoint", path), megabytes=300)
    output = tmp_path / "mean.safetensors"
    average = measure("seresnext/__main__.py", "average", path, other, "--output", output)
    if case not in ("variance", "bytes", "of another part"):  # The mean is refused where it is used.
        assert_refused(average, megabytes=500)
        assert not output.exists()


def test_names_of_classes_do_not_steer_the_terminal(measure: Probe, forge: Forge, images: Path) -> None:
    """In the answers of `predict`, and where other classes are there than were trained on."""

    def predict(classes: list[str]) -> ProbeResult:
        words = ("seresnext/__main__.py", "predict", "--checkpoint", forge({"dataset.classes": classes}))
        return measure(*words, images / "val/class_0/0.jpg")

    names = ["\x1b[2Jcat\n 99.9 %  dog", "\x9b\u202e", "x" * 10**5]
    answer = predict(names)
    assert answer.returncode == 0, answer.output
    assert all(character.isprintable() or character == "\n" for character in answer.output)
    assert len(answer.stdout.splitlines()) == 4
    assert len(answer.stdout) < 2000
    assert_refused(measure("validate.py", "--checkpoint", forge({"dataset.classes": names})), code=3)
    assert "names 1 classes" in assert_refused(predict(["a"]), megabytes=300)


def test_a_run_does_not_go_on_from_a_recipe_without_end(
    measure: Probe, forge: Forge, recipe: Path, images: Path, tmp_path: Path
) -> None:
    """tests/checkpoint/test_contents.py has other facts that are refused."""
    path = forge({"recipe": {f"\x1b{number}": 1 for number in range(100_000)}})
    arguments = ["--recipe", recipe, "--data", images, "--output", tmp_path / "run", "--resume", path]
    assert_refused(measure("train.py", *arguments), code=4, megabytes=900)
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
