"""`seresnext average`: means compared with numpy's, and refused files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_digits import small

from seresnext.arguments import Parser
from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.commands import tools
from seresnext.distributed import World
from seresnext.errors import CheckpointError, Failure
from seresnext.models import load_weights
from seresnext.recipe.load import load_recipe, to_values
from seresnext.run.resume import find_checkpoint
from seresnext.run.validate import read_subject

pytestmark = pytest.mark.usefixtures("narrow")
CLASSES = ["ant", "bee", "cat"]


def checkpoint(folder: Path, step: int, *changes: str, classes=CLASSES, parts=("l",)) -> Path:
    """Write a checkpoint with `ema` weights. The step seeds the weights."""
    settings = ["model.num_classes=3", "ema={decay: 0.9}", "evaluation.weights=ema"]
    values = to_values(load_recipe("digits", [*settings, *changes]).recipe)
    torch.manual_seed(step)
    tensors = {"optimizer.momentum.last_linear.bias": torch.ones(3)}
    for prefix in ("model", "ema"):
        model = small("", 3)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.num_batches_tracked.fill_(step)
        state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(parts)}
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in state.items()}
    dataset = {"classes": classes, "num_images": 3, "fingerprint": ""}
    best = {"step": step, "top1": 50.0, "top5": 60.0, "weights": "ema"}
    facts = CheckpointMetadata(step, values, "", best, [], dataset, environment={}, progress={"step": step})
    return store.commit(folder, step, tensors, facts.to_metadata())


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return [checkpoint(folder, step) for step in (9, 2, 5)]


@pytest.fixture
def average(tmp_path):
    """`average(*arguments)`: the command, in this process."""
    parser = Parser()
    tools.average_arguments(parser)

    def run(*arguments):
        output = [] if "--output" in arguments else ["--output", tmp_path / "mean.safetensors"]
        tools.average(parser.parse([str(word) for word in (*arguments, *output)]))

    return run


@pytest.mark.parametrize("weights", ["auto", "model"])
def test_means_are_numpys(average, three, tmp_path, weights):
    average(*three, "--weights", weights)
    tensors = load_file(tmp_path / "mean.safetensors")
    prefix = "ema" if weights == "auto" else "model"
    sources = [load_file(path) for path in three]
    assert len(tensors) == sum(name.startswith("ema.") for name in sources[0])
    for name, tensor in tensors.items():
        each = [source[f"{prefix}.{name.removeprefix('model.')}"].numpy() for source in sources]
        if name.endswith("num_batches_tracked"):
            assert tensor == 9
        else:
            expected = np.mean([array.astype(np.float64) for array in each], axis=0).astype(np.float32)
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-12)
    head = "model.last_linear.weight"
    assert not torch.equal(tensors[head], sources[0][head.replace("model", prefix)])


def test_the_file_is_one_of_weights_and_not_of_a_run(average, tmp_path):
    two = [checkpoint(tmp_path, step) for step in (1, 2)]
    other = tmp_path / "run" / "checkpoints" / "best.safetensors"
    other.parent.mkdir(parents=True)
    other.hardlink_to(two[1])
    average(two[0], tmp_path / "run")
    mean = tmp_path / "mean.safetensors"
    subject, recipe = read_subject(mean, None, World())
    assert (subject.weights, subject.classes, recipe.ema) == ("model", CLASSES, None)
    assert load_weights(small("", 3), load_file(mean), "mean") == []
    with pytest.raises(CheckpointError, match=r"no run can resume from.*set model\.weights="):
        find_checkpoint(tmp_path, str(mean), World(), print)
    assert find_checkpoint(tmp_path, str(two[0]), World(), print) is not None  # The control.


def test_what_is_refused(average, three, tmp_path):
    other_recipe = checkpoint(tmp_path / "a", 3, "optimizer.lr=0.5")
    other_classes = checkpoint(tmp_path / "b", 3, classes=["x", "y", "z"])
    other_tensors = checkpoint(tmp_path / "c", 3, parts=("layer",))
    damaged, bare, exists = (tmp_path / f"{name}.safetensors" for name in ("damaged", "bare", "exists"))
    damaged.write_bytes(three[0].read_bytes()[:-1] + b"x")
    save_file(load_file(three[0]), bare, {"format": "pt"})
    exists.touch()
    files = sorted(tmp_path.glob("*.safetensors"))
    for arguments, code, message in [
        ([three[0], other_recipe], 4, "optimizer.lr: 0.01 -> 0.5"),
        ([three[0], other_classes], 4, "classes"),
        ([three[0], other_tensors], 4, "tensors"),
        ([three[0], damaged], 4, "damaged.safetensors"),
        ([three[0]], 2, "two checkpoints"),
        ([three[0], three[0]], 2, "each once"),
        ([three[0], tmp_path / "none.safetensors"], 4, "none.safetensors"),
        ([three[0], bare], 4, "bare.safetensors"),
        ([three[0], tmp_path / "a"], 4, "best.safetensors"),
        ([*three, "--output", exists], 2, "give a new .safetensors"),
    ]:
        with pytest.raises(Failure) as caught:
            average(*arguments)
        assert caught.value.exit_code == code
        assert message in str(caught.value)
        assert sorted(tmp_path.glob("*.safetensors")) == files


def test_keys_that_no_number_depends_on_may_differ(average, three, tmp_path):
    average(three[0], checkpoint(tmp_path / "a", 3, "data.workers=0"))
    assert (tmp_path / "mean.safetensors").exists()
