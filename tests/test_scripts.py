"""The scripts as a user starts them. Set-up runs with a stand-in for python3 that installs nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import Facts
from seresnext.recipe.load import load_recipe, to_values

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"

# Answers the questions that the set-up asks, notes installations, and is its own virtual environment.
STAND_IN = """#!/bin/bash
case "$*" in
    *version_info*) [ -z "$STAND_IN_OLD" ] ;;
    --version) echo "Python 3.8.18" ;;
    *ensurepip*) [ -z "$STAND_IN_NO_VENV" ] ;;
    "-m venv --clear "*) rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >>"$STAND_IN_LOG" ;;
    "-m pip install "*) echo pip >>"$STAND_IN_LOG"; echo "$STAND_IN_PIP_SAYS"; ${STAND_IN_PIP:-true} ;;
    "-m pytest"*) echo "pytest $3" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class SetUp:
    """A copy of the scripts where python3 is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.project, self.log, bin_folder = folder / "project", folder / "log", folder / "bin"
        shutil.copytree(SCRIPTS, self.project / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.project)
        bin_folder.mkdir()
        (bin_folder / "python3").write_text(STAND_IN)
        (bin_folder / "python3").chmod(0o755)
        # python3.11 and its like would be found as well: the path holds the stand-in and the tools that scripts use.
        for tool in ("bash", "cat", "cksum", "cp", "dirname", "flock", "head", "mkdir", "rm", "sleep", "tail", "tee"):
            (bin_folder / tool).symlink_to(shutil.which(tool) or tool)
        (bin_folder / "touch").symlink_to(shutil.which("touch") or "touch")
        self.bin, self.env = bin_folder, {"PATH": str(bin_folder), "STAND_IN_LOG": str(self.log)}

    def start(self, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.project / "scripts" / "test.sh"), "an argument"],
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **env: str) -> tuple[int, str, str]:
        process = self.start(**env)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        calls = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls


@pytest.fixture
def set_up(tmp_path: Path) -> SetUp:
    return SetUp(tmp_path)


def test_first_set_up_installs_and_the_second_is_fast(set_up):
    code, out, _ = set_up.run()
    assert (code, out) == (0, "pytest an argument\n")
    assert set_up.calls() == ["venv", "pip"]
    start = time.monotonic()
    assert set_up.run()[0] == 0
    assert time.monotonic() - start < 1
    assert set_up.calls() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(set_up, name):
    set_up.run()
    set_up.calls()
    with (set_up.project / name).open("a") as file:
        file.write("# changed\n")
    assert set_up.run()[0] == 0
    assert set_up.calls() == ["pip"]


def test_a_failed_installation_is_shown_and_repeated(set_up):
    code, out, err = set_up.run(STAND_IN_PIP="false", STAND_IN_PIP_SAYS="ERROR: No matching distribution")
    assert (code, out) == (1, "")
    assert "No matching distribution" in err
    assert "tries again" in err
    assert set_up.run()[0] == 0
    assert set_up.calls() == ["venv", "pip", "venv", "pip"]


def test_an_interrupted_installation_is_repeated_from_the_start(set_up):
    process = set_up.start(STAND_IN_PIP="sleep 60")
    while not (set_up.log.exists() and "pip" in set_up.log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)  # The pip has only begun to say that it works, and bash may miss a signal while it starts one.
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert set_up.run()[0] == 0
    assert set_up.calls() == ["venv", "pip", "venv", "pip"]


def test_two_set_ups_at_once_install_once(set_up):
    first = set_up.start(STAND_IN_PIP="sleep 1")
    while not set_up.log.exists():
        time.sleep(0.02)
    code, out, err = set_up.run()
    assert (code, out) == (0, "pytest an argument\n")
    assert "Waiting for another set-up" in err
    first.communicate(timeout=10)
    assert first.returncode == 0
    assert set_up.calls() == ["venv", "pip"]


def test_a_moved_project_gets_a_new_environment(set_up, tmp_path):
    set_up.run()
    set_up.calls()
    set_up.project = set_up.project.rename(tmp_path / "moved")
    assert set_up.run()[0] == 0
    assert set_up.calls() == ["venv", "pip"]


def test_an_environment_that_is_linked_to_is_not_emptied(set_up, tmp_path):
    set_up.run()
    set_up.calls()
    (set_up.project / ".venv").rename(tmp_path / "shared")
    (tmp_path / "shared" / ".stamp").write_text("/another/place\n")
    before = sorted((tmp_path / "shared").rglob("*"))
    (set_up.project / ".venv").symlink_to(tmp_path / "shared")
    code, out, err = set_up.run()
    assert (code, out) == (1, "")
    assert ".venv is a link, and cannot be used here" in err
    assert sorted((tmp_path / "shared").rglob("*")) == before
    assert set_up.calls() == []
    (set_up.project / ".venv").unlink()  # As it says.
    assert set_up.run()[0] == 0


def test_an_environment_of_the_user_is_kept(set_up):
    venv = set_up.project / ".venv"
    (venv / "bin").mkdir(parents=True)
    shutil.copy(set_up.bin / "python3", venv / "bin" / "python")
    (venv / "of-the-user").touch()
    assert set_up.run()[0] == 0
    assert (venv / "of-the-user").exists()
    assert set_up.calls() == ["pip"]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"STAND_IN_OLD": "1"}, "needs Python 3.11 or newer, and python3 here is Python 3.8.18"),
        ({"STAND_IN_NO_VENV": "1"}, "apt install python3-venv"),
    ],
)
def test_an_unsuitable_python_is_explained(set_up, env, message):
    code, out, err = set_up.run(**env)
    assert (code, out) == (1, "")
    assert message in err
    assert not (set_up.project / ".venv").exists()


def test_no_python_is_explained(set_up):
    (set_up.bin / "python3").unlink()
    code, _, err = set_up.run()
    assert code == 1
    assert "there is no python3 on the PATH" in err


# ------------------------------------------------------------------------------------------------ digits


def digit_images(folder: Path) -> dict[int, tuple[str, int]]:
    """Of each image, by its index in scikit-learn's set: its split and its class."""
    return {int(path.stem): (path.parts[-3], int(path.parts[-2])) for path in folder.glob("*/*/*.png")}


def test_digits_are_split_fairly(digits_folder):
    images = digit_images(digits_folder)
    assert sorted(images) == list(range(1797))
    every = Counter(label for _, label in images.values())
    validation = Counter(label for split, label in images.values() if split == "val")
    assert validation.total() == 360
    for label, count in every.items():
        assert abs(validation[label] - count * 360 / 1797) < 1


def test_digits_are_the_digits(digits_folder):
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (split, label) in list(digit_images(digits_folder).items())[::29]:
        assert label == digits.target[index]
        with Image.open(digits_folder / split / str(label) / f"{index:04}.png") as image:
            assert (image.size, image.mode) == ((32, 32), "L")
            blocks = np.asarray(image, float).reshape(8, 4, 8, 4).mean((1, 3))  # back to 8 x 8
        distances = np.abs(digits.images * (255 / 16) - blocks).sum((1, 2))
        assert distances.argmin() == index  # nearer to its own original than to any other


def test_complete_digits_are_left_alone_and_others_refused(digits_folder, run_command, tmp_path):
    argv = [sys.executable, SCRIPTS / "prepare_digits.py", "--output"]
    before = digits_folder.stat().st_mtime_ns
    result = run_command([*argv, digits_folder])
    assert result.returncode == 0
    assert "there already" in result.stdout
    assert digits_folder.stat().st_mtime_ns == before

    (tmp_path / "mine").mkdir()
    result = run_command([*argv, tmp_path / "mine"])
    assert result.returncode == 3
    assert "not the folder of digits" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "mine").iterdir()) == []


# ------------------------------------------------------------------------------------------------ CIFAR-10


def cifar10_archive(path: Path, batches: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def cifar10_batches() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    batches = {"batches.meta.txt": b"airplane\nautomobile\nbird\n\n", "readme.html": b"<html>"}
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = [0, 1, 2, 0]
        batches[name] = records.tobytes()
    return batches


def test_cifar10_becomes_image_folders(run_command, tmp_path, cifar10_batches):
    archive = cifar10_archive(tmp_path / "cifar.tar.gz", cifar10_batches)
    output = tmp_path / "out"
    result = run_command([sys.executable, SCRIPTS / "prepare_cifar10.py", archive, "--output", output])
    assert result.returncode == 0, result.output
    assert len(list(output.glob("train/*/*.png"))) == 20
    assert sorted(path.name for path in (output / "val" / "airplane").iterdir()) == ["00000.png", "00003.png"]
    with Image.open(output / "val" / "bird" / "00002.png") as image:
        red, green, blue = image.getpixel((5, 1))  # column 5 of row 1
    record = cifar10_batches["test_batch.bin"][2 * 3073 :]
    assert (red, green, blue) == tuple(record[1 + plane * 1024 + 32 + 5] for plane in range(3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", None, "lacks data_batch_3.bin"),
        ("test_batch.bin", bytes(3072), "test_batch.bin is cut off"),
        ("test_batch.bin", bytes([3]) + bytes(3072), "has label 3, and there are 3 classes"),
    ],
)
def test_another_archive_is_refused(run_command, tmp_path, cifar10_batches, name, content, message):
    batches = {key: value for key, value in {**cifar10_batches, name: content}.items() if value is not None}
    archive = cifar10_archive(tmp_path / "cifar.tar.gz", batches)
    result = run_command([sys.executable, SCRIPTS / "prepare_cifar10.py", archive, "--output", tmp_path / "out"])
    assert result.returncode == 3
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == [archive]  # Nothing half-made is left.


# ------------------------------------------------------------------------------------------------ curves


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    entries = []
    for step in range(1, 41):
        entries.append({"event": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "lr": 0.1})
        if step % 10 == 0:
            scores = {"loss": 1 / step, "top1": 50 + step, "top5": 90.0}
            entries.append({"event": "validate", "step": step, "epoch": step / 10, **scores})
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"event": "tra')
    return tmp_path


def test_curves_become_a_picture(run_folder, run_command):
    result = run_command([sys.executable, SCRIPTS / "plot_run.py", run_folder])
    assert result.returncode == 0, result.output
    with Image.open(run_folder / "curves.png") as image:
        assert image.width > 800
        pixels = np.asarray(image.convert("RGB"))
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two: both panels draw both
        rows, columns = np.nonzero((pixels == colour).all(-1))
        assert len(rows) > 100
        assert columns.min() < image.width / 2 < columns.max()


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("{]\n", "metrics.jsonl:1 is not JSON")])
def test_curves_of_nothing_are_explained(tmp_path, run_command, content, message):
    if content:
        (tmp_path / "metrics.jsonl").write_text(content)
    result = run_command([sys.executable, SCRIPTS / "plot_run.py", tmp_path])
    assert result.returncode == 3
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_loss_that_is_not_finite_is_left_out_of_the_curves(tmp_path, run_command):
    lines = [{"event": event, "epoch": 1.0, "loss": None, "top1": 10.0} for event in ("train", "validate")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_command([sys.executable, SCRIPTS / "plot_run.py", tmp_path])
    assert result.returncode == 0, result.output


# ------------------------------------------------------------------------------------------------ predictions

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """timm's network with five classes, and statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = timm.create_model("legacy_seresnext26_32x4d", num_classes=len(CLASSES), drop_rate=0.0)
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(40, 70, 3), (90, 60, 3)]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).resize((size[1] * 5, size[0] * 5)).save(paths[-1])
    return paths


def expected_features(oracle: torch.nn.Module, paths: list[Path], resize: int, crop: int, mode: str) -> np.ndarray:
    transform = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(mode)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(path)) for path in paths])
        return oracle.forward_head(oracle.forward_features(images), pre_logits=True).numpy()


def expected_lines(oracle: torch.nn.Module, paths: list[Path], features: np.ndarray, names: list[str]) -> list[str]:
    lines = []
    for path, row in zip(paths, torch.from_numpy(features), strict=True):
        probabilities = oracle.last_linear(row).softmax(0).tolist()
        best = sorted(range(len(names)), key=lambda label: -probabilities[label])[:2]
        lines += [str(path), *(f"  {100 * probabilities[label]:6.2f} %  {names[label]}" for label in best)]
    return lines


def our_checkpoint(oracle: torch.nn.Module, folder: Path) -> Path:
    values = to_values(load_recipe("digits", ["model.num_classes=5", "evaluation.crop_pct=0.8"]).recipe)
    dataset = {"classes": CLASSES, "num_images": 5, "fingerprint": ""}
    facts = Facts(7, values, recipe_hash="", best=None, history=[], dataset=dataset, environment={}, progress={})
    tensors = {f"model.{name}": tensor for name, tensor in oracle.state_dict().items()}
    return store.commit(folder, 7, tensors, facts.to_metadata())


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_predictions_are_timms(run_command, tmp_path, oracle, photographs, kind):
    if kind == "published":
        checkpoint, names = tmp_path / "weights.pth", [f"class {number}" for number in range(5)]
        torch.save(oracle.state_dict(), checkpoint, _use_new_zipfile_serialization=False)
        expected = expected_features(oracle, photographs, 256, 224, "bicubic")
    else:
        checkpoint, names = our_checkpoint(oracle, tmp_path), CLASSES
        expected = expected_features(oracle, photographs, 40, 32, "bilinear")
    argv = [sys.executable, SCRIPTS / "predict.py", "--checkpoint", checkpoint, *photographs, "--top", "2"]
    result = run_command([*argv, "--features", tmp_path / "features.npy"])
    assert result.returncode == 0, result.output
    features = np.load(tmp_path / "features.npy")
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert result.stdout.splitlines()[:-1] == expected_lines(oracle, photographs, features, names)


def test_a_damaged_checkpoint_predicts_nothing(run_command, tmp_path, oracle, photographs):
    checkpoint = our_checkpoint(oracle, tmp_path)
    content = bytearray(checkpoint.read_bytes())
    content[-1000] ^= 1
    checkpoint.write_bytes(content)
    result = run_command([sys.executable, SCRIPTS / "predict.py", "--checkpoint", checkpoint, *photographs])
    assert result.returncode == 4
    assert checkpoint.name in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--checkpoint", "none.pth", "a.png"], 4, "none.pth"),
        (["--checkpoint", "{checkpoint}", "none.png"], 3, "none.png cannot be read: No such file"),
        (["--checkpoint", "{checkpoint}", "{photograph}", "--features", "no/such/folder"], 2, "no/such/folder"),
    ],
)
def test_wrong_words_are_explained(run_command, tmp_path, oracle, photographs, words, code, message):
    places = {"checkpoint": our_checkpoint(oracle, tmp_path), "photograph": photographs[0]}
    result = run_command([sys.executable, SCRIPTS / "predict.py", *(word.format(**places) for word in words)])
    assert result.returncode == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


# ------------------------------------------------------------------------------------------------ shell


def test_shell_scripts_parse():
    scripts = [*SCRIPTS.glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) == 4
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", "-x", script], check=True, cwd=ROOT)


# ------------------------------------------------------------------------------------------------ the demo


@pytest.mark.runs
@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="demo.sh uses .venv, and these tests run elsewhere")
def test_demo_at_reduced_length(run_command, tmp_path, digits_folder):
    argv = ["bash", SCRIPTS / "demo.sh", "--output", "run", "--data", digits_folder, "--set", "length=6st"]
    result = run_command(argv, timeout=400, cwd=tmp_path)
    assert result.returncode == 0, result.output
    run = tmp_path / "run"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    scores = json.loads((run / "validation.json").read_text())
    assert scores["num_images"] == 360
    assert f"accuracy     {scores['top1']:.2f} % of 360" in result.stdout
    assert str(run) in result.stdout
    assert "tensorboard" in result.stdout
    assert (run / "curves.png").exists()
