"""Check the project on a GPU and write a report in Markdown, to paste into the documents.

    [PYTHON=python3] bash scripts/check_gpu.sh [--report FILE] [--device cpu] [PART...]

The parts, in this order. The default is all parts:

    tests    the tests that need a CUDA device
    resume   a resumed run has the bits of an uninterrupted run, in fp32 and in compiled bf16
    recipes  two uncompiled steps of each recipe, on a folder of images
    table    images per second of a training step, of ours and of timm; only SE-ResNeXt-26 is compiled

All parts together are meant to take 8 minutes on one GPU. The report is written after each part. The exit code is 1 if
a part failed. `--device cpu` runs a small version of each part without a GPU, to test this script.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import _python  # noqa: F401
import numpy as np
import torch
from PIL import Image

from seresnext.arguments import path_argument
from seresnext.errors import Failure, UsageError
from seresnext.process.exit import run_script
from seresnext.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
RESUME_TEST = "tests/runs/test_training.py::test_on_a_gpu_a_resumed_run_is_bit_for_bit_the_same"
# Progressive sizes would begin with small images.
TWO_STEPS = (
    *("length=2st", "schedule.warmup=0ep", "logging.every=1st"),
    *("data.format=folder", "data.progressive=null", "runtime.compile=false"),
)
# The file with the first weights is not part of the project.
SETTINGS = {"finetune": ("model.weights=null", "model.reset_head=false")}
SMALL = ("batch={global_size: 4, micro_size: 2}", "data.image_size=32", "data.workers=0", "model.num_classes=4")
STEP = ["scripts/bench.py", "step", "--peer", "timm"]
# Model, and options of `bench.py step`. `bench.py step` measures all precisions unless --precision is given.
ROWS = (
    ("seresnext26", ["--compile", "false"]),
    ("seresnext26", ["--compile", "true", "--precision", "bf16"]),
    ("seresnext50", ["--compile", "false", "--precision", "bf16"]),
    ("seresnext101", ["--compile", "false", "--precision", "bf16"]),
)


class CheckFailed(Failure):
    """A part failed."""


class Check:
    """The parts, on one device. Each returns whether it passed, and the lines of the report."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        hidden = {} if self._on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
        self._env = {**os.environ, **hidden, "PYTHONPATH": str(ROOT)}

    def tests(self) -> tuple[bool, list[str]]:
        """Run the tests marked `gpu`; on a CPU skip the tests of one folder."""
        return self._pytest("-m", "gpu", "--deselect", RESUME_TEST, *(["--gpu"] if self._on_gpu else ["tests/models"]))

    def resume(self) -> tuple[bool, list[str]]:
        """Run the test that compares a resumed run with an uninterrupted run; on a CPU only in fp32."""
        return self._pytest("--gpu", RESUME_TEST, *([] if self._on_gpu else ["-k", "fp32"]))

    def recipes(self) -> tuple[bool, list[str]]:
        """Train two steps of each recipe on a folder of one image; on a CPU with a batch of four small images."""
        lines, passed = ["| recipe | loss of steps 1 and 2 | s |", "|---|---|---|"], True
        with tempfile.TemporaryDirectory() as name:
            for recipe in sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")):
                # A recipe with `auto` trains on any number of classes.
                classes = (load_recipe(recipe, []).recipe.model.num_classes or 1000) if self._on_gpu else 4
                data, output = Path(name) / f"{classes} classes", Path(name) / recipe
                if not data.exists():
                    write_images(data, classes)
                settings = (*TWO_STEPS, *SETTINGS.get(recipe, ()), *(() if self._on_gpu else SMALL))
                words = ["train.py", "--recipe", recipe, "--data", str(data), "--output", str(output)]
                code, printed, seconds = self._run(*words, *(f"--set={setting}" for setting in settings))
                if code:
                    lines.append(f"| `{recipe}` | failed: {printed.splitlines()[-1]} | {seconds:.0f} |")
                    passed = False
                    continue
                events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
                losses = ", ".join(f"{event['loss']:.4f}" for event in events if event["event"] == "train")
                lines.append(f"| `{recipe}` | {losses} | {seconds:.0f} |")
                shutil.rmtree(output)  # A checkpoint of SE-ResNeXt-101 has hundreds of MB.
        return passed, lines

    def table(self) -> tuple[bool, list[str]]:
        """Measure training steps of ours and of timm; on a CPU one row with small images."""
        size = ["--micro", "128", "--steps", "5", "--rounds", "3"]
        rows = ROWS
        if not self._on_gpu:
            size = ["--size", "32", "--micro", "2", "--steps", "1", "--rounds", "1"]
            rows = (("seresnext26", ["--compile", "false", "--precision", "fp32"]),)
        lines = ["| model | precision | compiled | images/s | of the matrix product | GiB | timm, images/s | ratio |"]
        lines.append("|---|---|---|---|---|---|---|---|")
        passed = True
        for model, options in rows:
            with tempfile.NamedTemporaryFile() as file:
                code, output, _ = self._run(*STEP, "--model", model, *size, *options, "--json", file.name)
                if code:
                    lines.append(f"| `{model}` | failed: {output.splitlines()[-1]} | | | | | | |")
                    passed = False
                    continue
                figures = json.loads(Path(file.name).read_text())
            for row in figures.get("table", [{**figures, "compiled": "true" in options}]):
                timm = row["peer"]["timm"]["images_per_second"]
                lines.append(
                    f"| `{model}` | {row['precision']} | {'yes' if row['compiled'] else 'no'} "
                    f"| {row['images_per_second']:.1f} | {row['share_of_peak']:.0%} "
                    f"| {row['peak_memory'] / 2**30:.1f} | {timm:.1f} | {row['ratio']['timm']:.3f} |"
                )
        return passed, lines

    def _pytest(self, *words: str) -> tuple[bool, list[str]]:
        code, output, _ = self._run("-m", "pytest", "-q", "-p", "no:cacheprovider", *words)
        lines = output.splitlines()
        failed = [f"- {line}" for line in lines if line.startswith(("FAILED", "ERROR"))]
        return code == 0, [*failed, lines[-1] if lines else "no output"]

    def _run(self, *words: str) -> tuple[int, str, float]:
        """Run this Python. Returns the exit code, all output, and the seconds."""
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return done.returncode, done.stdout.strip(), time.monotonic() - started


PARTS: dict[str, Callable[[Check], tuple[bool, list[str]]]] = {
    "tests": Check.tests,
    "resume": Check.resume,
    "recipes": Check.recipes,
    "table": Check.table,
}


def main() -> None:
    """Parse the command line, run the parts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--report", type=path_argument, default=Path("gpu_report.md"), metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a small version of each part")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        raise UsageError(f"{unknown[0]} is not a part; the parts are {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device; --device cpu tries the script without one")
    check, lines, failed = Check(options.device), describe_machine(options.device), []
    for name, part in PARTS.items():
        if options.parts and name not in options.parts:
            continue
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        passed, found = part(check)
        verdict = f"{name}: {'passed' if passed else 'FAILED'}, {time.monotonic() - started:.0f} s"
        lines += ["", f"## {verdict}", "", *found]
        options.report.write_text("\n".join(lines) + "\n")
        print("\n".join([verdict, *found]), flush=True)
        if not passed:
            failed.append(name)
    print(f"The report is in {options.report}.")
    if failed:
        raise CheckFailed(f"failed: {', '.join(failed)}; see {options.report}")


def write_images(root: Path, classes: int) -> None:
    """Write class folders with three training images and one validation image each, all of them one image."""
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 260), Image.Resampling.BICUBIC).save(root / "image.jpg")
    for split, count in (("train", 3), ("val", 1)):
        for label in range(classes):
            folder = root / split / f"class_{label:04}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").hardlink_to(root / "image.jpg")


def describe_machine(device: str) -> list[str]:
    """Return the head of the report: device, versions and commit."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}"
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {version('torchvision')}"
    return ["# Check on a GPU", "", f"{name}; {versions}; commit {git.stdout.strip() or 'unknown'}."]


if __name__ == "__main__":
    run_script(main)
