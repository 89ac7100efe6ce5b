"""Files that timm, torchvision's references and NVIDIA's examples write. Oracle: timm, huggingface_hub."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from exports import CLASSES, assert_same_logits, make_oracle, run
from hub_server import serve_hub
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import load_checkpoint, save_for_hf
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from seresnext.errors import CheckpointError, UsageError
from seresnext.models import LoadedWeights, Preprocessing, build_pretrained, find_weights, load_pretrained, open_weights

NAME = "legacy_seresnext26_32x4d"
DATA = {
    "input_size": (3, 64, 64), "crop_pct": 0.8, "interpolation": "bilinear", "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.25),
}  # fmt: skip
HOW = Preprocessing(64, 0.8, "bilinear", DATA["mean"], DATA["std"])


@pytest.fixture(scope="module")
def oracle() -> nn.Module:
    return make_oracle(NAME, 0)


@pytest.fixture(scope="module")
def other() -> nn.Module:
    return make_oracle(NAME, 1)


@pytest.fixture(scope="module")
def hub_folder(oracle: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that timm writes. Tests must not change the folder."""
    folder = tmp_path_factory.mktemp("hub")
    save_for_hf(oracle, str(folder), {"label_names": CLASSES}, data_config=DATA, safe_serialization="both")
    return folder


# ------------------------------------------------------------------------------------------------ folders of the Hub


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_timm(hub_folder: Path, oracle: nn.Module, tmp_path: Path, name: str):
    for file in (name, "config.json"):
        (tmp_path / file).symlink_to(hub_folder / file)  # as in the cache of huggingface_hub
    loaded = open_weights(tmp_path)
    assert_same_logits(build_pretrained(loaded), oracle)
    assert (loaded.preprocessing, loaded.classes, loaded.weights) == (HOW, CLASSES, "model")
    assert load_pretrained(tmp_path / name)[1] == HOW
    (tmp_path / "config.json").unlink()  # The control: a bare file has the preprocessing of the published weights.
    assert load_pretrained(tmp_path / name)[1] != HOW


@pytest.mark.full
def test_a_validation_agrees_with_timm(hub_folder: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "val" / label / f"{number}.png" for number, label in enumerate(CLASSES * 2)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((120, 90)).save(path)
    model = timm.create_model(f"local-dir:{hub_folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model))
    with torch.inference_mode():
        logits = model(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]))
    labels = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    result = tmp_path / "result.json"
    words = ["--checkpoint", hub_folder, "--data", tmp_path, "--workers", 0, "--batch-size", 5, "--json", result]
    assert run("validate", *words, "--device", "cpu") == 0
    found = json.loads(result.read_text())
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    assert found["top1"] == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()))
    assert (found["preprocessing"]["image_size"], found["preprocessing"]["crop_pct"]) == (64, 0.8)


@pytest.mark.full
@pytest.mark.parametrize("name", ["seresnext50_32x4d", "seresnext101_32x4d"])
def test_the_test_sizes_of_a_newer_model(tmp_path: Path, name: str):
    oracle = make_oracle(name, 0)
    save_for_hf(oracle, str(tmp_path), safe_serialization=True)
    loaded = open_weights(tmp_path)
    assert_same_logits(build_pretrained(loaded), oracle)
    assert loaded.classes is None
    expected = resolve_data_config(model=oracle, use_test_size=True)
    how = loaded.preprocessing
    assert (how.image_size, how.crop_pct) == (expected["input_size"][1], expected["crop_pct"])


BAD_CONFIGS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"architecture": "resnet50"}, {}, "architecture.*resnet50.*legacy_seresnext26"),
    ({"architecture": "legacy_seresnext50_32x4d"}, {}, "belong together"),
    ({"num_classes": 6}, {}, "5 label_names for 6 classes"),
    ({"num_classes": 6, "label_names": None}, {}, "with 6"),
    ({"label_names": {"0": "a", "2": "b"}}, {}, "label_names"),
    ({"global_pool": "max"}, {}, "global_pool"),
    ({"model_args": {"act_layer": "gelu"}}, {}, "act_layer"),
    ({}, {"crop_mode": "squash"}, "crop_mode"),
    ({}, {"interpolation": "lanczos"}, "interpolation"),
    ({}, {"input_size": [3, 64, 96]}, "64x96"),
    ({}, {"input_size": [3, 64, 10**9]}, "input_size"),
    ({}, {"mean": [0.1, 0.2]}, "2 means for 3 channels"),
    ({}, {"std": [0.1, 0.2, 0]}, "std"),
]


@pytest.mark.parametrize(("outer", "inner", "message"), BAD_CONFIGS)
def test_a_configuration_that_is_refused(hub_folder: Path, tmp_path: Path, outer: dict, inner: dict, message: str):
    (tmp_path / "model.safetensors").symlink_to(hub_folder / "model.safetensors")
    config = json.loads((hub_folder / "config.json").read_text())
    config["pretrained_cfg"] |= inner
    (tmp_path / "config.json").write_text(json.dumps(config | outer))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"architecture": 3}', b" " * (17 << 20)])
def test_a_file_that_is_no_configuration(hub_folder: Path, tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").symlink_to(hub_folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_weights(tmp_path)


# -------------------------------------------------------------------------------------------------------- the Hub


PREDICT = """
import sys, torch
from seresnext import load_pretrained
try:
    load_pretrained("hf-hub:lab/bees")
except Exception as error:
    print(error)
model, how = load_pretrained("hf-hub:lab/ants")
with torch.inference_mode():
    torch.save((model(torch.ones(1, 3, 64, 64)), how.image_size), sys.argv[1])
"""


@pytest.mark.full
def test_a_repository_of_the_hub(hub_folder: Path, oracle: nn.Module, run_command: Callable[..., Any], tmp_path: Path):
    """The first call downloads. The next call finds the files in the cache, without a server."""
    result = tmp_path / "logits.pt"

    def check(done: Any) -> None:
        assert done.returncode == 0, done.output
        assert "hf-hub:lab/bees cannot be downloaded" in done.stdout
        logits, size = torch.load(result)
        with torch.inference_mode():
            torch.testing.assert_close(logits, oracle(torch.ones(1, 3, 64, 64)))
        assert size == 64
        result.unlink()

    with serve_hub(tmp_path / "cache") as hub:
        hub.files["lab/ants"] = {
            name: (hub_folder / name).read_bytes() for name in ("config.json", "pytorch_model.bin")
        }
        check(run_command([sys.executable, "-c", PREDICT, result], env=hub.environment))
    check(run_command([sys.executable, "-c", PREDICT, result], env=hub.environment | {"HF_HUB_OFFLINE": "1"}))


@pytest.mark.parametrize("name", ["", "ants", "a/b/c", "a/b@", "../..//x", "a b/c"])
def test_names_that_are_no_repository(name: str):
    with pytest.raises(UsageError, match="ORG/NAME"):
        find_weights(f"hf-hub:{name}")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install .*export"):
        find_weights("hf-hub:lab/ants")


# ------------------------------------------------------------------------------------------- training checkpoints


ARGUMENTS = {
    "model": NAME, "img_size": 64, "input_size": None, "crop_pct": 0.8, "interpolation": "bilinear",
    "mean": [0.4, 0.5, 0.6], "std": None, "lr": 0.1, "aa": None, "ratio": [0.75, 4 / 3], "model_kwargs": {"a": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def timm_checkpoint(oracle: nn.Module, other: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that timm writes: `oracle` is the model, `other` the average."""
    folder = tmp_path_factory.mktemp("timm")
    average = ModelEmaV3(other)
    optimizer = torch.optim.SGD(oracle.parameters(), 0.1, 0.9)
    for parameter in oracle.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scaler = type("Scaler", (), {"state_dict_key": "amp_scaler", "state_dict": lambda self: {"scale": 65536.0}})()
    arguments = argparse.Namespace(**ARGUMENTS)
    saver = CheckpointSaver(oracle, optimizer, arguments, average, scaler, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(3, metric=12.5)
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize("weights", [None, "ema", "model"])
@pytest.mark.full
def test_a_checkpoint_of_timm(timm_checkpoint: Path, oracle: nn.Module, other: nn.Module, weights: str | None):
    loaded = open_weights(timm_checkpoint, weights)
    assert loaded.weights == (weights or "ema")
    assert_same_logits(build_pretrained(loaded), oracle if weights == "model" else other)
    if weights is None:  # timm's own default
        model = timm.create_model(NAME, num_classes=len(CLASSES))
        load_checkpoint(model, str(timm_checkpoint), weights_only=False)
        assert_same_logits(build_pretrained(loaded), model.eval())


@pytest.mark.parametrize(
    "changes",
    [{}, {"img_size": None}, {"input_size": [3, 96, 96]}, {"mean": [0.5], "interpolation": ""}, {"std": [1, 2, 3]}],
)
@pytest.mark.parametrize("name", [NAME, "legacy_seresnext50_32x4d"])
def test_the_arguments_of_timm_give_the_preprocessing(changes: dict[str, Any], name: str):
    arguments = ARGUMENTS | changes
    with torch.device("meta"):
        model = timm.create_model(name)
    expected = resolve_data_config(arguments, model=model, use_test_size=True)
    found = LoadedWeights("file", dict(model.state_dict()), arguments=arguments).preprocessing
    assert found == Preprocessing(
        expected["input_size"][1], *(expected[key] for key in ("crop_pct", "interpolation")),
        *(tuple(expected[key]) for key in ("mean", "std")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", "x"), ("img_size", -1), ("crop_pct", [1]), ("interpolation", {}), ("std", 3), ("mean", torch.ones(2)),
     ("crop_pct", torch.ones(2)), ("img_size", 2**2000)],
)  # fmt: skip
def test_arguments_that_are_refused(oracle: nn.Module, key: str, value: object):
    arguments = ARGUMENTS | {key: value, "val_resize_size": 1 if key == "img_size" else None}
    loaded = LoadedWeights("file.pth", dict(oracle.state_dict()), arguments=arguments)
    with pytest.raises(CheckpointError, match=rf"file\.pth.*({key}|input_size)"):
        _ = loaded.preprocessing


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.full
def test_a_checkpoint_of_torchvisions_references(oracle: nn.Module, other: nn.Module, tmp_path: Path, old: bool):
    """The entries are those of references/classification/train.py."""
    path = tmp_path / "checkpoint.pth"
    optimizer = torch.optim.SGD(oracle.parameters(), 0.1, 0.9)
    steps = [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)]
    checkpoint = {
        "model": oracle.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.SequentialLR(optimizer, steps, [5]).state_dict(),
        "epoch": 4,
        "args": argparse.Namespace(val_crop_size=64, val_resize_size=72, interpolation="bilinear", lr=0.5, amp=False),
        "model_ema": AveragedModel(other).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old)
    assert_same_logits(build_pretrained(open_weights(path, "model")), oracle)
    loaded = open_weights(path)
    assert_same_logits(build_pretrained(loaded), other)
    how = loaded.preprocessing
    assert (how.image_size, how.crop_pct, how.interpolation) == (64, 64 / 72, "bilinear")
    del checkpoint["model_ema"]
    torch.save(checkpoint, path)
    assert open_weights(path).weights == "model"
    with pytest.raises(UsageError, match="--weights ema"):
        open_weights(path, "ema")


# ---------------------------------------------------------------------------------------------------- NVIDIA's variant


def nvidia_name(name: str, layers: str) -> str:
    """Return the name in image_classification/models/resnet.py of DeepLearningExamples. Before 20.06: `layer1`."""
    for old, new in (("layer0.", ""), ("last_linear", "fc"), ("se_module.fc1", "squeeze.squeeze"),
                     ("se_module.fc2", "squeeze.expand")):  # fmt: skip
        name = name.replace(old, new)
    number = name.removeprefix("layer")[0]
    return name.replace(f"layer{number}", f"layers.{int(number) - 1}") if layers and name.startswith("layer") else name


@pytest.mark.parametrize("rename", [lambda name: name, lambda n: nvidia_name(n, ""), lambda n: nvidia_name(n, "s")])
def test_nvidias_variant_is_refused_with_the_reason(oracle: nn.Module, tmp_path: Path, rename: Callable[[str], str]):
    state = {}
    for name, tensor in oracle.state_dict().items():
        fixed = tensor[:16] if ".fc1." in name else tensor[:, :16] if ".fc2.weight" in name else tensor
        state[f"module.{rename(name)}"] = fixed.contiguous()
    save_file(state, tmp_path / "nvidia.safetensors")
    torch.save({"state_dict": load_file(tmp_path / "nvidia.safetensors"), "arch": "x"}, tmp_path / "nvidia.pth.tar")
    for name in ("nvidia.safetensors", "nvidia.pth.tar"):
        with pytest.raises(CheckpointError, match=r"NVIDIA.*16 channels"):
            load_pretrained(tmp_path / name)
