"""validate.py as a command: exact on any number of ranks, and equal to an independent measurement."""

import json

import launcher
import pytest
import timm
import torch
import torch.nn.functional as F
from launcher import PYTHON
from run_folders import events, last_tensors
from torchvision import datasets, transforms

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def trained(train_arguments, tmp_path_factory):
    """A run long enough for BatchNorm statistics that make sense, validated in 7 batches of 2."""
    changes = ("length=12st", "checkpoint.every=12st", "evaluation={every: 12st, batch_size: 2}")
    changes += ("runtime.precision=fp32",)
    output = tmp_path_factory.mktemp("trained") / "run"
    words = [word for change in changes for word in ("--set", change)]
    launcher.complete(1, ["train.py", *train_arguments(output, *words)[1:]])
    return output


@pytest.fixture
def validate(run_command, run_world, tmp_path):
    def run(checkpoint, *more, world=1):
        report = tmp_path / f"report{world}.json"
        arguments = ["validate.py", "--checkpoint", str(checkpoint), "--json", str(report), *map(str, more)]
        result = run_command([PYTHON, *arguments]) if world == 1 else run_world(world, arguments)
        assert result.returncode == 0, result.output
        return json.loads(report.read_text())

    return run


def test_on_1_2_and_3_ranks_it_is_equal_and_what_training_logged(trained, validate, tmp_path):
    """13 images in 7 batches, which 2 and 3 ranks do not divide. Folded BatchNorm rounds the loss in another way."""
    checkpoint = trained / "checkpoints" / "last.safetensors"
    tables = [tmp_path / f"{world}.csv" for world in (1, 2, 3)]
    reports = [validate(checkpoint, "--table", tables[world - 1], world=world) for world in (1, 2, 3)]
    (logged,) = [each for each in events(trained, "validate") if (each["step"], each["weights"]) == (12, "ema")]
    assert logged["num_images"] == 13
    assert {"intervals", "per_class", "confusion", "calibration"} <= reports[0].keys()
    for report, table in zip(reports, tables, strict=True):
        assert {**report, "images_per_second": 0} == {**reports[0], "images_per_second": 0}
        assert table.read_text() == tables[0].read_text()
    assert [reports[0][name] for name in ("weights", "top1", "top5")] == [
        logged[n] for n in ("weights", "top1", "top5")
    ]
    assert reports[0]["loss"] == pytest.approx(logged["loss"], rel=1e-5)


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_it_agrees_with_timm_and_torchvision(trained, validate, images, weights):
    report = validate(trained / "checkpoints" / "last.safetensors", "--weights", weights)
    preprocessing = report["preprocessing"]
    assert preprocessing["image_size"] == 32
    transform = transforms.Compose(
        [
            transforms.Resize(int(32 / preprocessing["crop_pct"])),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
    )
    dataset = datasets.ImageFolder(str(images / "val"), transform)
    model = timm.create_model("legacy_seresnext26_32x4d", num_classes=3).double().eval()
    tensors = last_tensors(trained)
    model.load_state_dict({k.removeprefix(f"{weights}."): v for k, v in tensors.items() if k.startswith(f"{weights}.")})
    with torch.no_grad():
        logits = torch.cat([model(image[None].double()) for image, _ in dataset])
    labels = torch.tensor(dataset.targets)
    assert report["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert report["top5"] == 100
    assert report["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
