"""Prove the data doctor: plant wrong labels and copies in photographs, and count the findings.

    python scripts/doctor_proof.py --data cifar10-small --output DIR [--classes cat ship truck] [--weights FILE] ...

DATA has train/ and val/ with the same class folders. DIR/data gets the first `--images` of each class of train, and all
of val. 5 % of the training labels are changed. 50 copies are planted: resized, compressed again or slightly cropped.
Half of the copies show validation images. The doctor examines DIR/data. Then a network is trained for each seed: on
everything, without the images of exclude.csv, and without the planted images. The accuracy is of the last weights, on
DIR/new, the training images beyond `--images`. DIR/results.json has the figures.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _python  # noqa: F401
import numpy as np
from PIL import Image

from seresnext.arguments import path_argument
from seresnext.errors import Failure, UsageError
from seresnext.process.exit import run_script

ROOT = Path(__file__).parents[1]
_WRONG, _COPIES = 0.05, 50
_FINE_TUNE = ("model.reset_head=true", "length=4ep", "optimizer.lr=0.005")


def main() -> None:
    """Parse the command line, plant, examine, train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=path_argument, required=True, metavar="DIR", help="folder with train/ and val/")
    parser.add_argument("--output", type=path_argument, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--classes", nargs="*", metavar="CLASS", help="some of the class folders (default: all)")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="training images of a class (300)")
    parser.add_argument("--image-size", type=int, default=64, metavar="N", help="side in the trainings (64)")
    parser.add_argument("--weights", metavar="FILE", help="weights that all trainings start from (default: random)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], metavar="N", help="of the trainings (0)")
    options = parser.parse_args()
    for folder in (options.data / "train", options.data / "val"):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; --data takes a folder with `train` and `val`")
    data, doctor = options.output / "data", options.output / "doctor"
    planted = plant(options.data, data, options.images, options.classes)
    paths = [path for paths in planted.values() for path in paths]
    (options.output / "planted.csv").write_text("\n".join(["path", *paths, ""]))
    start = ["--checkpoint", options.weights, "--folds", "4"] if options.weights else []
    run("doctor", str(data), "--output", str(doctor), "--image-size", str(options.image_size), *start)
    results = judge(planted, json.loads((doctor / "findings.json").read_text()))
    lists = {"everything": None, "without exclude.csv": doctor / "exclude.csv", "without the planted": "planted.csv"}
    for seed in options.seeds:
        for name, file in lists.items():
            folder = options.output / f"{name.replace(' ', '-')}-{seed}"
            settings = [f"data.image_size={options.image_size}", f"runtime.seed={seed}", "logging.sinks=[]"]
            settings += [f"model.num_classes={len(list((data / 'train').iterdir()))}"]
            settings += [f"model.weights={options.weights}", *_FINE_TUNE] if options.weights else []
            settings += [f"data.exclude={options.output / file}"] if file else []
            words = [word for setting in settings for word in ("--set", setting)]
            run("train", "--recipe", "cifar10", "--data", str(data), "--output", str(folder), *words)
            last, json_file = folder / "checkpoints" / "last.safetensors", folder / "new.json"
            run("validate", "--checkpoint", str(last), "--data", str(options.output / "new"), "--json", str(json_file))
            new = json.loads(json_file.read_text())
            results["accuracy"].append({"images": name, "seed": seed, "top1": new["top1"], "loss": new["loss"]})
            (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def plant(source: Path, data: Path, count: int, classes: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Copy images to a new folder, and plant wrong labels and copies. Return the planted paths by kind."""
    if data.exists():
        raise UsageError(f"{data} exists; --output takes a new folder")
    for split in ("train", "val"):
        folders = [source / split / name for name in classes] if classes else (source / split).iterdir()
        for folder in sorted(folders):
            places = [data / split / folder.name, data.parent / "new" / "val" / folder.name]
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
            for number, file in enumerate(sorted(folder.iterdir())):
                shutil.copyfile(file, places[split == "train" and number >= count] / file.name)
    rng = np.random.default_rng(0)
    names = sorted(folder.name for folder in (data / "train").iterdir())
    images = {split: sorted((data / split).rglob("*.*")) for split in ("train", "val")}
    planted: dict[str, list[str]] = {"label": [], "leak": [], "near": []}
    wrong = rng.choice(len(images["train"]), round(_WRONG * len(images["train"])), replace=False)
    for file in [images["train"][number] for number in wrong.tolist()]:
        others = [name for name in names if name != file.parent.name]
        target = data / "train" / others[rng.integers(len(others))] / f"{file.stem}-of-{file.parent.name}{file.suffix}"
        planted["label"].append(str(file.rename(target).relative_to(data)))
    right = {"leak": images["val"], "near": [file for file in images["train"] if file.exists()]}
    for number in range(_COPIES):
        kind = ("leak", "near")[number % 2]
        file = right[kind][rng.integers(len(right[kind]))]
        target = data / "train" / file.parent.name / f"copy-{number}.jpg"
        target.write_bytes(alter(Image.open(file).convert("RGB"), number // 2 % 3, rng))
        planted[kind].append(str(target.relative_to(data)))
    return planted


def alter(image: Image.Image, way: int, rng: np.random.Generator) -> bytes:
    """Return an image as a JPEG that was resized by 0.75 to 1.5, compressed again, or cropped by up to 4 % a side."""
    side, quality = min(image.size), 90
    if way == 0:
        scale = rng.uniform(0.75, 1.5)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    elif way == 1:
        quality = int(rng.integers(30, 71))
    else:
        left, top, right, bottom = rng.integers(0, max(1, round(0.04 * side)) + 1, 4).tolist()
        image = image.crop((left, top, image.width - right, image.height - bottom))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def judge(planted: dict[str, list[str]], found: dict[str, Any]) -> dict[str, Any]:
    """Return precision and recall of the findings, in percent, and an empty list of accuracies."""
    images = {each["key"]: each["rows"] for each in found["findings"]}
    results: dict[str, Any] = {"images": found["num_images"], "seconds": found["seconds"], "method": found["method"]}
    for key in ("leak", "near"):
        pairs = [(row["path"], row["other"]) for row in images[key]]
        copies = {next((path for path in pair if path in planted[key]), pair[0]) for pair in pairs}
        results[key] = precision_recall(planted[key], copies)
    suspected = [row for row in images["label"] if row["split"] == "train"]
    listed, first = [row for row in suspected if row["listed"]], len(planted["label"])
    for name, rows in (
        ("label", suspected),
        (f"first {first} labels", suspected[:first]),
        ("first 20 labels", suspected[:20]),
        ("listed label", listed),
    ):
        results[name] = precision_recall(planted["label"], [row["path"] for row in rows])
    results["accuracy"] = []
    return results


def precision_recall(planted: Sequence[str], found: Sequence[str] | set[str]) -> dict[str, float]:
    """Return precision and recall in percent, and the numbers of images."""
    right = len({*planted} & {*found})
    precision, recall = 100 * right / max(1, len(found)), 100 * right / max(1, len(planted))
    return {"precision": precision, "recall": recall, "planted": len(planted), "found": len(found), "right": right}


def run(*words: str) -> None:
    """Run a command of seresnext. Raise Failure if the command fails."""
    print("seresnext", *words, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if subprocess.run([sys.executable, "-m", "seresnext", *words], env=environment).returncode:
        raise Failure(f"seresnext {words[0]} failed; the messages above have the reason")


if __name__ == "__main__":
    run_script(main)
