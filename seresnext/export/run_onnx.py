"""Classify images with model.onnx, or check this folder. Needs onnxruntime, numpy and Pillow.

python run.py IMAGE...     print the five most probable classes of each image
python run.py --verify     check the digests of all files, and the logits of the golden images
"""

import hashlib
import json
import math
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def read(name):
    """Return the content of a JSON file of this folder."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def load_image(path, config):
    """Return the pixels that the model was trained for, uint8 H W 3."""
    how, background = config["pretrained_cfg"], config.get("background")
    size, crop = how["input_size"][1], how["crop_pct"]
    image = Image.open(path)
    if config.get("exif_rotation"):
        with suppress(Exception):  # Broken EXIF. The pixels are good.
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    elif background and (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        opaque = image.convert("RGBA").getchannel("A")
        image = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, tuple(background)), opaque)
    image = image.convert("RGB")
    short, shorter = math.floor(size / crop), min(image.size)
    resized = int(short * image.width / shorter), int(short * image.height / shorter)
    image = image.resize(resized, Image.Resampling[how["interpolation"].upper()])
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def open_session():
    """Return the session that runs model.onnx."""
    import onnxruntime  # late: the project imports this module without it

    return onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])


def compute_logits(session, pixels, config):
    """Return the logits N num_classes of pixels N H W 3."""
    mean, std = (np.asarray(config[name], np.float32) for name in ("mean", "std"))
    images = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.asarray(session.run(["logits"], {"images": np.ascontiguousarray(images)})[0])


def predict(paths):
    """Print the classes of each image, and exit with 3 if a file is no image."""
    config, session, bad = read("config.json"), open_session(), 0
    for path in paths:
        try:
            pixels = load_image(path, config)
        except Exception as error:  # Pillow raises errors of many kinds.
            print(f"{path}: {error}", file=sys.stderr)
            bad += 1
            continue
        logits = compute_logits(session, pixels[None], config["pretrained_cfg"])[0] / config.get("temperature", 1)
        shares = np.exp(logits - logits.max())
        print(path)
        for label in np.argsort(-shares)[:5]:
            print(f"  {100 * shares[label] / shares.sum():6.2f} %  {config['label_names'][label]!r:.200}")
    sys.exit(3 if bad else 0)


def verify():
    """Print the largest deviation of a logit, or exit with the reason."""
    manifest = (HERE / "manifest.json").read_bytes()
    blank = re.sub(rb'("digest": ")[0-9a-f]{64}', rb"\g<1>" + b"0" * 64, manifest)
    if f'"digest": "{hashlib.sha256(blank).hexdigest()}"'.encode() not in manifest:
        sys.exit("manifest.json was changed")
    for name, digest in json.loads(manifest)["files"].items():
        if not (HERE / name).is_file() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"{name} is missing or was changed")
    config, expected = read("config.json"), read("golden/expected.json")
    if config["label_names"] != expected["classes"]:
        sys.exit("the classes of config.json have another order or other names than at the export")
    pixels = np.stack([load_image(HERE / "golden" / name, config) for name in expected["images"]])
    wanted = np.asarray([image["logits"] for image in expected["images"].values()])
    deviation = np.abs(compute_logits(open_session(), pixels, config["pretrained_cfg"]) - wanted).max()
    if not deviation <= expected["tolerance"]:
        sys.exit(f"the logits deviate by {deviation:.2g}: preprocessing or weights differ from those of the export")
    print(f"verified: the logits deviate by at most {deviation:.2g} (limit {expected['tolerance']:.2g})")


if __name__ == "__main__":
    verify() if set(sys.argv[1:]) <= {"--verify"} else predict(sys.argv[1:])
