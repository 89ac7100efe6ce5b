"""`seresnext.load` and the classifier, compared with timm, and the fine-tuning of docs/predict.md."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from bad_checkpoints import metadata_values, model_weights, write_checkpoint
from exports import make_oracle
from PIL import Image
from safetensors.torch import save_file

import seresnext
from seresnext.errors import CheckpointError, DataError, UsageError
from seresnext.models import open_weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    return make_oracle("legacy_seresnext26_32x4d", 0)


@pytest.fixture(scope="module")
def file(oracle: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(oracle.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def classifier(file: Path) -> seresnext.Classifier:
    found = seresnext.load(file)
    found.preprocessing = replace(found.preprocessing, image_size=64)
    return found


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((110, 90)))


@pytest.fixture(scope="module")
def expected(oracle: torch.nn.Module, pixels: np.ndarray) -> torch.Tensor:
    """timm's probabilities."""
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    transform = timm.data.create_transform((3, 64, 64), crop_pct=0.875, interpolation="bicubic", mean=mean, std=std)
    with torch.inference_mode():
        return oracle(transform(Image.fromarray(pixels))[None])[0].softmax(0)


def test_every_kind_of_image_gives_timms_probabilities(classifier, oracle, pixels, expected, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    images = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        pixels,
        pixels[:, ::-1][:, ::-1],  # Negative strides.
        tensor,
        tensor / 255,
        (tensor / 255).double(),
    ]
    values, order = expected.sort(descending=True)
    names = [f"class {label}" for label in order.tolist()]
    many = classifier.predict(images, top=3)
    for row in [*many, classifier.predict(images[0], top=3)]:
        assert [prediction.name for prediction in row] == names[:3]
        assert [prediction.probability for prediction in row] == pytest.approx(values[:3].tolist(), abs=1e-4)
    assert len(classifier.predict(pixels)) == 5
    assert sum(probability for _, probability in classifier.predict(pixels, top=99)) == pytest.approx(1)
    batches = (np.stack([pixels] * 2), tensor.expand(2, -1, -1, -1), [])
    assert [len(classifier.predict(batch)) for batch in batches] == [2, 2, 0]


def test_more_images_than_a_batch(classifier, pixels):
    alone = classifier.features(pixels)
    many = classifier.features([pixels] * 33)
    assert (alone.shape, many.shape) == ((2048,), (33, 2048))
    torch.testing.assert_close(many, alone.expand(33, -1), rtol=1e-3, atol=1e-5)


def test_features_are_the_input_of_the_classifier_or_means_of_a_stage(classifier, oracle, pixels):
    inputs = classifier.prepare(pixels)
    with torch.inference_mode():
        maps = oracle.forward_features(inputs)
        torch.testing.assert_close(classifier.features(pixels), maps.mean((2, 3))[0], rtol=1e-3, atol=1e-5)
        x = oracle.pool0(oracle.layer0(inputs))
        for stage, width in (("layer1", 256), ("layer2", 512), ("layer3", 1024), ("layer4", 2048)):
            x = getattr(oracle, stage)(x)
            found = classifier.features([pixels], stage=stage)
            torch.testing.assert_close(found, x.mean((2, 3)), rtol=1e-3, atol=1e-5)
            assert classifier.features([], stage=stage).shape == (0, width)
    head = torch.nn.Linear(2048, 2)
    head(classifier.features([pixels])).sum().backward()  # Features may train another classifier.
    assert not [hook for module in classifier.model.modules() for hook in module._forward_hooks.values()]


def test_a_training_model_predicts_in_evaluation_mode(classifier, pixels):
    before = classifier.predict(pixels)
    classifier.model.train()
    statistics = classifier.model.layer0.bn1.running_mean.clone()
    assert classifier.predict(pixels) == before
    torch.testing.assert_close(classifier.model.layer0.bn1.running_mean, statistics)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"array float64 \(4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), r"array uint8 \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "array uint8"),
        (torch.zeros(4, 4, 3), r"tensor torch.float32 \(4, 4, 3\)"),
        (torch.full((3, 4, 4), 2.0), "from 2 to 2; give floats in 0..1"),
        (torch.full((3, 4, 4), float("nan")), "from nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "torch.int64"),
        ([None], "NoneType"),
    ],
)
def test_other_kinds_are_refused(classifier, image, message):
    with pytest.raises(UsageError, match=message):
        classifier.predict(image)


def test_files_that_cannot_be_used_are_named(classifier, tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        classifier.predict([tmp_path / "a.png", tmp_path / "none.png"])
    with pytest.raises(DataError, match=r"a\.png .*more than max_pixels \(100\)"):
        replace(classifier, max_pixels=100).predict(tmp_path / "a.png")
    with pytest.raises(UsageError, match="there is no stage layer5; give one of layer1,"):
        classifier.features(pixels, stage="layer5")
    with pytest.raises(UsageError, match="5 outputs and 2 classes"):
        replace(classifier, classes=["a", "b"]).predict(pixels)


def test_a_run_gives_classes_preprocessing_and_limit(tmp_path, tiny_image_folder):
    values = metadata_values(tiny_image_folder(), "data.max_pixels=5000")
    write_checkpoint(tmp_path / "last.safetensors", model_weights(3), values)
    found = seresnext.load(str(tmp_path))
    assert (found.classes, found.max_pixels) == (["class_0", "class_1", "class_2"], 5000)
    assert found.preprocessing == open_weights(tmp_path / "last.safetensors").preprocessing
    assert found.source == str(tmp_path / "last.safetensors")
    image = torch.zeros(3, 40, 50)
    inputs = found.preprocessing(Image.fromarray(np.zeros((40, 50, 3), np.uint8)))
    torch.testing.assert_close(found.prepare(image)[0], inputs)
    values["dataset"]["classes"].pop()
    with pytest.raises(CheckpointError, match="names 2 classes, the model has 3"):
        seresnext.load(write_checkpoint(tmp_path / "last.safetensors", model_weights(3), values))


def test_a_model_for_other_channels_is_refused(tmp_path):
    save_file(seresnext.create_model("seresnext26", 2, in_channels=1).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="1 channels"):
        seresnext.load(tmp_path / "a.safetensors")


def test_the_published_files_have_imagenets_names(tmp_path):
    save_file(seresnext.create_model("seresnext26").state_dict(), tmp_path / "a.safetensors")
    classes = seresnext.load(tmp_path / "a.safetensors").classes
    assert (len(classes), classes[1]) == (1000, "goldfish")


@pytest.mark.full
def test_the_fine_tuning_of_the_document_learns(tmp_path, monkeypatch, tiny_image_folder):
    """The loop learns directions and colours of gradients in a few steps."""
    code = re.search(r"```python\n(import torch.*?)```", (ROOT / "docs" / "predict.md").read_text(), re.S)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 20
    (tmp_path / "photos").symlink_to(tiny_image_folder(classes=2, per_class=16))
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("tiny.safetensors"), model_weights(3), metadata_values(tiny_image_folder()))
    torch.manual_seed(0)
    small = code[1].replace("seresnext50", "tiny.safetensors").replace("range(5)", "range(3)")
    exec(compile(small, "predict.md", "exec"), names := {})
    found = [dict(row)["class_0"] for row in names["classifier"].predict(sorted(Path("photos/val").rglob("*.jpg")))]
    assert min(found[:4]) > max(found[4:])
