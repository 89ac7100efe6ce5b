"""`seresnext predict` compared with timm's network and transforms, and with the table of a validation."""

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
import pytest
import timm
import timm.data
import torch
from encoded_images import noise, turned
from PIL import Image
from safetensors.torch import save_file

from seresnext import classifier
from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.classifier import load
from seresnext.cli import main
from seresnext.data.batches import EvaluationImages
from seresnext.errors import Failure, UsageError
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import load_recipe, to_values
from seresnext.run.predict import Row, choose_format, write_features, write_rows

CLASSES = ["ant", "bee", "cat", "dog", "eel"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """timm's network with five classes and statistics of one training step."""
    torch.manual_seed(0)
    model = timm.create_model("legacy_seresnext26_32x4d", num_classes=len(CLASSES), drop_rate=0.0)
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
        model.last_linear.weight *= 10  # Probabilities that differ by more than rounding.
    return model.eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(40, 70, 3), (90, 60, 3), (50, 50), (30, 90, 4)]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).resize((size[1] * 5, size[0] * 5)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def checkpoint(oracle: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return our_checkpoint(oracle, tmp_path_factory.mktemp("ours"))


def our_checkpoint(oracle: torch.nn.Module, folder: Path, *overrides: str) -> Path:
    values = to_values(load_recipe("digits", ["model.num_classes=5", "evaluation.crop_pct=0.8", *overrides]).recipe)
    dataset = {"classes": CLASSES, "num_images": 5, "fingerprint": ""}
    facts = CheckpointMetadata(
        7, values, recipe_hash="", best=None, history=[], dataset=dataset, environment={}, progress={}
    )
    tensors = {f"model.{name}": tensor for name, tensor in oracle.state_dict().items()}
    return store.commit(folder, 7, tensors, facts.to_metadata())


class Result(NamedTuple):
    code: int
    out: str
    err: str


Classify = Callable[..., Result]


@pytest.fixture
def classify(capsys: pytest.CaptureFixture[str]) -> Classify:
    """`classify(checkpoint, *words) -> Result` of the command, in this process."""

    def run(checkpoint: Path | str, *words: object) -> Result:
        code = main(["predict", "--checkpoint", str(checkpoint), *map(str, words)], StopRequest())
        return Result(code, *capsys.readouterr())

    return run


def expected(oracle: torch.nn.Module, paths: list[Path], size: int, crop_pct: float, mode: str) -> tuple[Any, Any]:
    """Return features and probabilities of images, by timm."""
    transform = timm.data.create_transform((3, size, size), crop_pct=crop_pct, interpolation=mode, mean=MEAN, std=STD)
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        features = oracle.forward_head(oracle.forward_features(images), pre_logits=True)
        return features.numpy(), oracle.last_linear(features).double().softmax(1)


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_predictions_are_timms(classify, tmp_path, oracle, photographs, checkpoint, kind):
    names, preprocessing = CLASSES, (32, 0.8, "bilinear")
    if kind == "ours":
        file = tmp_path / "checkpoints" / "best.safetensors"
        file.parent.mkdir()
        file.hardlink_to(checkpoint)
        given = tmp_path  # A run folder.
    else:
        names, preprocessing = [f"class {number}" for number in range(5)], (224, 0.875, "bicubic")
        given = tmp_path / "weights.pth"
        torch.save(oracle.state_dict(), given, _use_new_zipfile_serialization=False)
    features, probabilities = expected(oracle, photographs, *preprocessing)
    found = classify(given, *photographs, "--format", "jsonl", "--features", tmp_path / "features.npy")
    assert found.code == 0
    rows = rows_of(found.out)
    assert [row["path"] for row in rows] == list(map(str, photographs))
    values, order = probabilities.sort(descending=True)
    assert [[each["class"] for each in row["predictions"]] for row in rows] == [
        [names[label] for label in labels] for labels in order.tolist()
    ]
    ours = [[each["probability"] for each in row["predictions"]] for row in rows]
    np.testing.assert_allclose(ours, values.numpy(), atol=1e-4)
    written = np.load(tmp_path / "features.npy")
    assert (written.shape, written.dtype) == ((4, 2048), np.float32)
    np.testing.assert_allclose(written, features, rtol=1e-3, atol=1e-4)
    assert f"features: {tmp_path / 'features.npy'}, 4 x 2048" in found.err


@pytest.mark.full
def test_a_bad_image_is_reported_and_all_others_are_complete(classify, tmp_path, checkpoint, photographs):
    bad = tmp_path / "bad\x1b.png"
    bad.write_bytes(photographs[0].read_bytes()[:100])
    paths = [photographs[0], bad, photographs[1], tmp_path / "none.png", tmp_path, photographs[0]]
    paths[4].joinpath("below").mkdir()
    (tmp_path / "below" / "a.JPG").write_bytes(photographs[3].read_bytes())
    files = [photographs[0], bad, photographs[1], tmp_path / "none.png", bad, tmp_path / "below" / "a.JPG", paths[5]]
    good = [0, 2, 5, 6]
    alone = rows_of(classify(checkpoint, *[files[n] for n in good], "--format", "jsonl").out)
    outputs = {name: tmp_path / name for name in ("rows.jsonl", "rows.csv", "rows.parquet", "rows.txt")}
    for number, output in enumerate(outputs.values()):
        features = ["--features", tmp_path / ("f.npy" if number % 2 else "f.parquet"), "--stage", "layer3"]
        words = ["--output", output, *features, "--batch-size", 2 + number, "--workers", number % 2]
        found = classify(checkpoint, *paths, *words, "--top", 3)
        assert (found.code, found.out) == (3, "")
        assert "error: 3 of 7 images are bad" in found.err
        assert found.err.count("bad image: ") == 3
        assert "none.png cannot be read: No such file" in found.err
        assert "\x1b" not in found.err
    rows = rows_of(outputs["rows.jsonl"].read_text())
    assert [row["path"] for row in rows] == list(map(str, files))
    assert ["error" in row for row in rows] == [n not in good for n in range(7)]
    for n, row in zip(good, alone, strict=True):
        assert [each["class"] for each in rows[n]["predictions"]] == [each["class"] for each in row["predictions"]][:3]
        ours = [each["probability"] for each in rows[n]["predictions"]]
        assert ours == pytest.approx([each["probability"] for each in row["predictions"][:3]], abs=1e-6)
    tables = [
        list(csv.DictReader(io.StringIO(outputs["rows.csv"].read_text()))),
        pyarrow.parquet.read_table(outputs["rows.parquet"]).to_pylist(),
    ]
    for table in tables:
        assert [row["path"] for row in table] == list(map(str, files))
        for row, fields in zip(rows, table, strict=True):
            assert (fields["error"] or None) == row.get("error")
            for rank, each in enumerate(row.get("predictions", ()), 1):
                assert fields[f"prediction_{rank}"] == each["class"]
                assert float(fields[f"probability_{rank}"]) == pytest.approx(each["probability"], abs=1e-6)
    assert outputs["rows.txt"].read_text().count("%") == 12
    assert "\x1b" not in outputs["rows.txt"].read_text()
    features = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert features["path"] == [str(files[n]) for n in good]
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), features["features"], rtol=1e-4, atol=1e-5)
    expected = load(checkpoint).features([files[n] for n in good], stage="layer3")
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), expected, rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_a_list_on_standard_input(classify, monkeypatch, checkpoint, photographs):
    given = f"{photographs[1]}\r\n\n{photographs[0]}\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    found = classify(checkpoint, "-", photographs[2], "--format", "csv", "--top", 1)
    assert [line.partition(",")[0] for line in found.out.splitlines()[1:]] == [str(photographs[n]) for n in (1, 0, 2)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    found = classify(checkpoint, "-")
    assert (found.code, found.out) == (3, "")
    assert "standard input has no paths" in found.err


def test_an_output_that_is_not_finite_is_an_error(classify, tmp_path, oracle, photographs):
    weights = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    weights["last_linear.weight"][2] = 3e38
    save_file(weights, tmp_path / "model.safetensors")
    found = classify(tmp_path / "model.safetensors", photographs[0], "--format", "jsonl")
    assert found.code == 3
    assert "not finite" in rows_of(found.out)[0]["error"]


def test_a_worker_that_dies_gives_a_message_and_no_file(classify, tmp_path, monkeypatch, checkpoint, photographs):
    make = EvaluationImages.make

    def dying(self: EvaluationImages, key: Any) -> Any:
        if key.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, key)

    monkeypatch.setattr(EvaluationImages, "make", dying)
    words = ["--batch-size", 1, "--workers", 2, "--output", tmp_path / "rows.csv", "--features", tmp_path / "f.npy"]
    found = classify(checkpoint, *photographs, *words)
    assert found.code == 3
    assert "a loader worker died" in found.err
    assert "--workers" in found.err
    assert "data.workers" not in found.err
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_names_the_option(classify, monkeypatch, checkpoint, photographs):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(classifier.Classifier, "outputs", full)
    found = classify(checkpoint, *photographs)
    assert found.code == 1
    assert "lower --batch-size" in found.err


@pytest.mark.parametrize(
    ("checkpoint_words", "words", "code", "message"),
    [
        ("none.pth", ["a.png"], 4, "none.pth"),
        ("https://host//w.pth", ["a.png"], 2, "https://host//w.pth"),
        ("", ["https://host//a.png"], 2, "https://host//a.png"),
        ("", ["{}/none/*.png"], 3, "matches no file"),
        ("", ["{}"], 3, "has no images"),
        ("", ["none.png"], 3, "1 of 1 images are bad"),
        ("", ["{photo}", "--features", "{photo}/f.npy"], 2, "cannot be written; choose another file with --features"),
        ("", ["{photo}", "--output", "{}"], 2, "--format"),
        ("", ["{photo}", "--output", "{}", "--format", "csv"], 2, "choose another file with --output"),
        ("", ["{photo}", "--features", "/dev/null"], 2, "is not .npy or .parquet"),
        ("", ["{photo}", "--format", "parquet"], 2, "--output FILE"),
        ("", ["{photo}", "--output", "{}/a.csv", "--features", "{}/a.csv"], 2, "the same file"),
        ("", ["{photo}", "--top", "0"], 2, "--top"),
        ("hf-hub:no slash", ["{photo}"], 2, "hf-hub:no slash"),
    ],
)
def test_mistakes_are_explained(classify, tmp_path, checkpoint, photographs, checkpoint_words, words, code, message):
    found = classify(checkpoint_words or checkpoint, *(word.format(tmp_path, photo=photographs[0]) for word in words))
    assert (found.code, found.out) == (code, "" if "none.png" not in words else "none.png\n  bad image, no result\n")
    assert message in found.err
    assert list(tmp_path.iterdir()) == []


def test_turned_photographs_have_the_predictions_of_upright_ones(classify, tmp_path, oracle, checkpoint):
    """The same pixels, upright in the file and upright only by EXIF. Without the key, such files are reported."""
    upright = noise(60, 40)
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned(6))
    turning = our_checkpoint(oracle, tmp_path / "turning", "data.exif_rotation=true")
    images = (tmp_path / "upright.png", tmp_path / "turned.png")
    for given, is_same in ((turning, True), (checkpoint, False)):
        found = classify(given, *images, "--format", "jsonl")
        one, other = (row["predictions"] for row in rows_of(found.out))
        assert (one == other) == is_same
        assert ("1 of 2 given images, such as" in found.err) == (not is_same)
        assert ("data.exif_rotation=true" in found.err) == (not is_same)
        model = load(given)
        opened = [Image.open(path) for path in images]
        assert torch.equal(*model.prepare(opened)) == is_same
        assert torch.equal(model.preprocessing(opened[0]), model.prepare(images[0])[0])
        assert torch.equal(model.preprocessing(opened[1]), model.prepare(images[1])[0])


@pytest.mark.full
def test_images_are_as_large_as_the_checkpoint_or_the_option_allows(
    classify, tmp_path, oracle, photographs, monkeypatch
):
    """The first two photographs have 70,000 and 135,000 pixels."""
    monkeypatch.setattr(classifier, "MAX_PIXELS", 120_000)
    published = tmp_path / "weights.pth"
    torch.save(oracle.state_dict(), published)
    small, large = (our_checkpoint(oracle, tmp_path / str(most), f"data.max_pixels={most}") for most in (80000, 135000))
    images = photographs[1::-1]
    for given, words in ((large, ()), (small, ("--max-pixels", 135000)), (published, ("--max-pixels", 140000))):
        assert classify(given, *images, "--top", 1, *words).out.count("%") == 2
    for given, words, limit in ((small, (), 80000), (large, ("--max-pixels", 90000), 90000), (published, (), 120000)):
        found = classify(given, *images, "--top", 1, *words)
        assert (found.code, found.out.count("%")) == (3, 1)
        assert f"--max-pixels ({limit})" in found.err
        assert "data.max_pixels" not in found.err


ROWS = [Row("a.png", [("cat", 0.9), ("dog", 0.1)]), Row("b\udcff,\n.png", (), "no image"), Row("c", [("\ud800", 1.0)])]


@pytest.mark.parametrize(
    ("output", "given", "chosen"),
    [
        (None, None, "table"),
        (None, "csv", "csv"),
        ("a.jsonl", None, "jsonl"),
        ("a.parquet", "csv", "csv"),
        ("a.txt", None, "table"),
    ],
)
def test_the_ending_gives_the_format(output, given, chosen):
    assert choose_format(output and Path(output), given, None) == chosen


TEXTS = {
    "table": "a.png\n   90.00 %  cat\n   10.00 %  dog\nb\\udcff,\\n.png\n  bad image, no result\n"
    "c\n  100.00 %  \\ud800\n",
    "csv": "path,prediction_1,prediction_2,probability_1,probability_2,error\n"
    'a.png,cat,dog,0.9,0.1,\n"b\\udcff,\n.png",,,,,no image\nc,\\ud800,,1.0,,\n',
}
COLUMNS = ["path", "prediction_1", "prediction_2", "probability_1", "probability_2", "error"]


@pytest.mark.parametrize("output_format", ["table", "jsonl", "csv", "parquet"])
def test_rows_are_written_with_any_names(tmp_path, output_format):
    path = tmp_path / "rows"
    write_rows(ROWS, path, output_format, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["rows"]
    if output_format == "parquet":
        table = pyarrow.parquet.read_table(path)
        assert table.column_names == COLUMNS
        assert table.to_pylist()[1] == dict.fromkeys(COLUMNS) | {"path": "b\\udcff,\n.png", "error": "no image"}
    elif output_format == "jsonl":
        for row, line in zip(ROWS, map(json.loads, path.read_text().splitlines()), strict=True):
            found = [(each["class"], each["probability"]) for each in line.get("predictions", ())]
            assert (line["path"], found, line.get("error", "")) == (row.path, list(row.predictions), row.error)
    else:
        assert path.read_text() == TEXTS[output_format]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_no_control_characters(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    write_rows([Row("a\x1b[2J", [("cat", 1.0)])], None, "csv", 1)
    assert capsys.readouterr().out.splitlines()[1] == ("a\\x1b[2J,cat,1.0," if is_terminal else "a\x1b[2J,cat,1.0,")


@pytest.mark.parametrize("count", [0, 12])
def test_features_are_read_by_numpy_and_pyarrow(tmp_path, count):
    features = np.random.default_rng(0).normal(size=(count, 7)).astype(np.float32)
    for name in ("f.npy", "f.parquet"):
        write_features([f"{n}" for n in range(count)], features, tmp_path / name)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), features)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table == {"path": list(map(str, range(count))), "features": features.tolist()}


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_a_write_that_fails_names_the_file_and_leaves_none(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Path, "with_name", lambda path, new: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: removed.append(path))
    removed: list[Path] = []
    with pytest.raises(Failure, match=rf"{name} cannot be written: No space left on device; choose another file"):
        write_features(["a"], np.zeros((1, 9), np.float32), tmp_path / name)
    assert removed == [Path("/dev/full")]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named_before_the_work(without):
    without("pyarrow")
    for output, features in (("rows.parquet", None), (None, "f.parquet")):
        with pytest.raises(UsageError, match=r'pip install "seresnext\[report\]"'):
            choose_format(output and Path(output), None, features and Path(features))
    assert choose_format(Path("rows.csv"), None, Path("f.npy")) == "csv"  # The control.


def test_a_missing_folder_is_made_and_a_file_in_its_place_is_named(tmp_path):
    write_features([], np.zeros((0, 2), np.float32), tmp_path / "new" / "f.npy")
    with pytest.raises(UsageError, match=r"f\.npy/f\.npy cannot be written"):
        choose_format(None, None, tmp_path / "new" / "f.npy" / "f.npy")
