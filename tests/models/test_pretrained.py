"""Loading weights: files that fit, files that are refused, and messages; folded models against timm's network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from exports import CLASSES, make_oracle
from safetensors.torch import save_file
from torch import Tensor, nn

from seresnext.checkpoint import file_format
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.errors import CheckpointError, UsageError
from seresnext.models import (
    MODELS,
    Preprocessing,
    SENet,
    create_model,
    first_weights,
    load_pretrained,
    load_weights,
    open_weights,
    published_preprocessing,
    timm_state_dict,
)
from seresnext.models.pretrained import HEAD, build_folded, fold_batchnorm, identify_model
from seresnext.models.registry import build_model
from seresnext.recipe.load import load_recipe
from seresnext.runtime import PRECISIONS

NAME = "legacy_seresnext26_32x4d"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> SENet:
    """Return a model with random statistics. Tests must not change the model."""
    torch.manual_seed(0)
    model = create_model(NAME)
    for name, buffer in model.named_buffers():
        buffer.fill_(3) if name.endswith("tracked") else buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def state(trained: SENet) -> State:
    return dict(trained.state_dict())


def fresh(name: str = NAME, num_classes: int = 1000, in_channels: int = 3) -> SENet:
    """Return another model, full of nines, without the slow initialisation."""
    with torch.device("meta"):
        model = create_model(name, num_classes, in_channels)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(9)
    return model


def refusal(model: SENet, tensors: Mapping[str, Tensor], **options: Any) -> str:
    """Return the message of a refusal. The model must not change."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"weights\.pth") as caught:
        load_weights(model, tensors, "weights.pth", **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(caught.value).replace("\n", "").isprintable()
    return str(caught.value)


def same(model: SENet, state: Mapping[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if name not in but)


# ------------------------------------------------------------------------------------------------ files that load


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "ema.", "model.module."])
def test_everything_is_loaded(state: State, prefix: str) -> None:
    model = fresh()
    assert load_weights(model, {prefix + name: tensor for name, tensor in state.items()}, "weights.pth") == []
    assert same(model, state)


def test_absent_num_batches_tracked_is_zero(state: State) -> None:
    model = fresh()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) == 179
    assert load_weights(model, old, "weights.pth") == []
    counters = tuple(name for name in state if name not in old)
    assert same(model, state, but=counters)
    assert all(model.state_dict()[name] == 0 for name in counters)


def test_half_precision_files(state: State) -> None:
    model = fresh()
    load_weights(model, {n: t.half() if t.is_floating_point() else t for n, t in state.items()}, "weights.pth")
    assert model.layer0.conv1.weight.dtype == torch.float32
    assert torch.equal(model.last_linear.weight, state["last_linear.weight"].half().float())


# ------------------------------------------------------------------------------------------------ refusals


def test_all_that_is_wrong_is_one_error(state: State) -> None:
    del state["layer1.0.bn1.weight"], state["layer4.1.se_module.fc2.bias"]
    state |= {"extra": torch.zeros(1), "layer9.\x1b[2J": torch.zeros(1)}
    state["layer2.0.conv1.weight"] = torch.zeros(3, 4)
    state["layer0.bn1.num_batches_tracked"] = torch.tensor(0.5)
    state["layer3.0.bn2.bias"] = torch.zeros(512, dtype=torch.int64)
    state["layer3.0.bn2.weight"] = torch.full((512,), float("nan"))
    state["layer3.0.bn2.running_mean"] = torch.full((512,), 1e300, dtype=torch.float64)
    state["layer3.0.bn2.running_var"] = torch.full((512,), -1e-9)
    lines = refusal(fresh(), state).split("\n  ")
    assert lines == [
        "weights.pth does not fit the model: use a file of weights of this model",
        "missing: layer1.0.bn1.weight",
        "missing: layer4.1.se_module.fc2.bias",
        "unexpected: extra",
        r"unexpected: layer9.\x1b[2J",
        "layer0.bn1.num_batches_tracked has the type torch.float32, in the model torch.int64",
        "layer2.0.conv1.weight has the shape (3, 4), in the model (256, 256, 1, 1)",
        "layer3.0.bn2.weight has values that are not finite",
        "layer3.0.bn2.bias has the type torch.int64, in the model torch.float32",
        "layer3.0.bn2.running_mean has values that are not finite",
        "layer3.0.bn2.running_var has negative variances",
    ]


def test_another_model(state: State) -> None:
    """The first line has the fix, and a few tensors of each kind show the fault."""
    first, *others = refusal(fresh("seresnext50", num_classes=10), state).split("\n  ")
    assert "weights.pth" in first
    assert f"model.name={NAME}" in first
    assert "model.reset_head=true" in first
    assert "layer1.2.conv1.weight" in others[0]
    assert len(others) == 13


def test_endless_names_are_one_screen(state: State) -> None:
    tensor = torch.zeros(1)
    message = refusal(fresh(), state | {f"x{i}": tensor for i in range(100_000)})
    assert "99,990" in message
    assert len(message) < 2000


# ------------------------------------------------------------------------------------------------ other classes


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_reset_head_loads_all_but_the_head(state: State, num_classes: int) -> None:
    model = fresh(num_classes=num_classes)
    (note,) = load_weights(model, state, "weights.pth", reset_head=True)
    assert same(model, state, but=HEAD)
    assert (model.last_linear.weight == 9).all()
    assert "without its classifier of 1000 classes" in note
    assert f"{num_classes} classes, starts untrained (model.reset_head)" in note


def test_reset_head_for_a_file_without_one(state: State) -> None:
    for name in HEAD:
        del state[name]
    assert "missing: last_linear.weight" in refusal(fresh(), state)
    assert "has no classifier" in load_weights(fresh(), state, "weights.pth", reset_head=True)[0]
    del state["layer0.conv1.weight"]  # All other tensors must be there.
    message = refusal(fresh(num_classes=10), state, reset_head=True)
    assert message.split("\n  ")[1:] == ["missing: layer0.conv1.weight"]


def test_another_number_of_channels(state: State) -> None:
    assert "(64, 3, 7, 7), in the model (64, 1, 7, 7)" in refusal(fresh(in_channels=1), state)


# ------------------------------------------------------------------------------------------------ which model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_identified_by_timms_names(name: str) -> None:
    """timm's names differ between the two stems. A checkpoint has this project's names, and the name in the recipe."""
    with torch.device("meta"):
        model = create_model(name, num_classes=12, in_channels=2)
    tensors = timm_state_dict(model)
    assert identify_model(tensors) == (name, 12, 2)
    assert identify_model({f"module.{key}": tensor for key, tensor in tensors.items()}) == (name, 12, 2)
    both = {f"model.{key}": tensor for key, tensor in tensors.items()} | {"optimizer.momentum.x": torch.zeros(1)}
    assert identify_model(both) == (name, 12, 2)
    assert identify_model(model.state_dict(), name) == (name, 12, 2)
    if not name.startswith("legacy_"):
        assert identify_model(model.state_dict()) == (f"legacy_{name}", 12, 2)


RELATIVES = "legacy_seresnet50 legacy_senet154 resnext50_32x4d legacy_seresnet18 seresnet50 seresnext26d_32x4d"


@pytest.mark.parametrize("name", [*RELATIVES.split(), "seresnext26t_32x4d", "seresnext101_32x8d", "seresnext101_64x4d"])
def test_relatives_are_not_identified(name: str) -> None:
    with torch.device("meta"):
        tensors = timm.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match="weights of none of legacy_seresnext26_32x4d"):
        identify_model(tensors)


def test_the_recipe_of_a_checkpoint_names_the_stem(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("seresnext50_32x4d")
    path = tmp_path / "best.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    write_checkpoint(path, tensors, {"model": {"name": "seresnext50_32x4d"}})
    loaded, _ = load_pretrained(path)
    assert loaded.stem_pool == "padded"
    assert same(loaded, model.state_dict())
    with pytest.raises(CheckpointError, match=r"best\.safetensors .*model\.name=seresnext50_32x4d"):
        open_weights(path).load_into(create_model("seresnext50"))
    write_checkpoint(tmp_path / "other.safetensors", tensors, {"model": {"name": "seresnext101_32x4d"}})
    with pytest.raises(CheckpointError, match=r"contradicts itself.*seresnext101_32x4d and seresnext50_32x4d"):
        load_pretrained(tmp_path / "other.safetensors")


@pytest.mark.full
def test_weights_of_the_other_stem_are_refused() -> None:
    """All shapes agree: the names, or the recipe of a checkpoint, tell the stem."""
    new, old = "seresnext50_32x4d", "legacy_seresnext50_32x4d"
    padded, rounded = fresh(new, num_classes=7), fresh(old, num_classes=7)
    timms = timm.create_model(new, num_classes=7).state_dict()
    assert load_weights(padded, timms, "weights.pth") == []
    for model, tensors, recorded, right in [
        (rounded, timms, None, new),
        (padded, rounded.state_dict(), None, old),
        (padded, padded.state_dict(), "seresnext50", old),
        (rounded, padded.state_dict(), new, new),
    ]:
        message = refusal(model, tensors, recorded_name=recorded)
        assert f"model.name={right}" in message
        assert "stem" in message
    # Without a classifier in the file the model is unknown, and the stem is still refused.
    headless = {name: tensor for name, tensor in timms.items() if not name.startswith("fc.")}
    assert "stem" in refusal(rounded, headless, reset_head=True)
    assert "has no classifier" in load_weights(padded, headless, "weights.pth", reset_head=True)[0]
    with pytest.raises(CheckpointError, match="names of two models"):
        identify_model({**timms, "last_linear.weight": timms["fc.weight"]})


def test_odd_shapes_are_not_identified(state: State) -> None:
    # The last two are empty, and announce a model of a billion classes or channels.
    for shape in ((), (0, 0), (64, 0, 7, 7), (2**30, 0), (64, 2**30, 0, 0)):
        for name in ("layer0.conv1.weight", "last_linear.weight"):
            with pytest.raises(CheckpointError):
                identify_model(state | {name: torch.zeros(shape)})


# ------------------------------------------------------------------------------------------------ load_pretrained


def test_published_file(tmp_path: Path, state: State) -> None:
    path = tmp_path / "seresnext26_32x4d-65ebdb501.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    model, preprocessing = load_pretrained(path)
    assert same(model, state)
    assert not model.training
    assert preprocessing == published_preprocessing(NAME)


def test_model_to_fine_tune(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    model, _ = load_pretrained(str(tmp_path / "weights.safetensors"), num_classes=5, drop_rate=0.3)
    assert (model.num_classes, model.drop_rate) == (5, 0.3)
    assert torch.equal(model.layer4[1].conv3.weight, state["layer4.1.conv3.weight"])


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], recipe: Any) -> None:
    """Write a checkpoint of a run. A recipe that is a text is written unchanged."""
    dataset = {"classes": [str(n) for n in range(1000)], "num_images": 1, "fingerprint": ""}
    texts = CheckpointMetadata(3, {}, "", None, [], dataset, {}, {}).to_metadata()
    texts["recipe"] = recipe if isinstance(recipe, str) else json.dumps(recipe)
    file_format.write_synced(path, *file_format.header(tensors, texts))


@pytest.mark.parametrize(("part", "other"), [("ema", "model"), ("model", "ema")])
def test_checkpoint_of_a_run(tmp_path: Path, state: State, part: str, other: str) -> None:
    """The file gives the weights and the preprocessing of the run's validation."""
    recipe = {
        "model": {"name": "seresnext26"},
        "data": {"image_size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "evaluation": {"crop_pct": 1.0, "interpolation": "bilinear", "weights": part},
        "ema": {"decay": 0.9},
    }
    path = tmp_path / "best.safetensors"
    tensors = {f"{part}.{name}": tensor for name, tensor in state.items()}
    tensors |= {f"{other}.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    tensors["optimizer.momentum.layer0.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    write_checkpoint(path, tensors, recipe=recipe)
    model, preprocessing = load_pretrained(path)
    assert same(model, state)
    assert preprocessing == Preprocessing(64, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("recipe", ["{", "[]", "3", '{"data": {"image_size": "\\u001b[2J"}}', "[" * 100_000])
def test_damaged_recipe(tmp_path: Path, state: State, recipe: str) -> None:
    write_checkpoint(tmp_path / "best.safetensors", state, recipe=recipe)
    with pytest.raises(CheckpointError, match=r"best\.safetensors has .*recipe") as caught:
        load_pretrained(tmp_path / "best.safetensors")
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["seresnext26", "seresnext50", "seresnext101"])
def test_the_seed_recipes_validate_as_the_published_weights_were(name):
    assert Preprocessing.of_recipe(load_recipe(name).recipe) == published_preprocessing(name)


# ------------------------------------------------------------------------------------------------ first weights


def test_weights_in_double_precision_are_not_rounded(tmp_path):
    section = load_recipe("digits").recipe.model
    torch.manual_seed(0)
    source = build_model(section).double()
    exact = torch.tensor(1 / 3, dtype=torch.float64)
    source.last_linear.weight.data.fill_(exact)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    section = section.model_copy(update={"weights": str(tmp_path / "weights.safetensors")})
    model = PRECISIONS["fp64"].apply_to(build_model(section), torch.device("cpu"), channels_last=False)
    assert open_weights(first_weights(section)).load_into(model) == []
    assert model.last_linear.weight[0, 0] == exact
    assert exact.float().double() != exact  # The control: in float32 it would be another number.


# ------------------------------------------------------------------------------------------------ open_weights


def test_weights_that_are_not_there(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "bare.safetensors")
    path = tmp_path / "best.safetensors"
    write_checkpoint(path, {f"model.{name}": tensor for name, tensor in state.items()}, {"model": {"name": NAME}})
    assert open_weights(path, "model").weights == "model"
    for file in ("bare", "best"):
        with pytest.raises(UsageError, match=rf"--weights ema: .*{file}\.safetensors"):
            open_weights(tmp_path / f"{file}.safetensors", "ema")
    strange = {"model.x": torch.zeros(1), "other.y": torch.zeros(1)}
    write_checkpoint(tmp_path / "strange.safetensors", strange, {"model": {"name": NAME}})
    with pytest.raises(CheckpointError, match=r"no run saves: other\.y"):
        open_weights(tmp_path / "strange.safetensors")


def test_a_folded_model_gives_timms_logits():
    oracle = make_oracle(NAME, 0)
    model = create_model(NAME, len(CLASSES))
    load_weights(model, oracle.state_dict(), "timm")
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    again = build_folded(NAME, len(CLASSES), folded.state_dict(), "file")
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = oracle(images)
        for found in (folded, again, folded.to(memory_format=torch.channels_last)):
            assert (found(images) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    # The given model is unchanged, and still trains.
    assert model.training
    assert isinstance(model.layer0[1], nn.BatchNorm2d)
