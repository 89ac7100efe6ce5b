"""Golden images: images with known logits, which travel with an export."""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw
from torch import Tensor

from seresnext.classifier import MAX_PIXELS
from seresnext.data.decode.kinds import ENDINGS, kind_of
from seresnext.data.decode.pillow import Decoding, decode
from seresnext.errors import CheckpointError, DataError, UsageError, shown_path
from seresnext.export.documents import MOST_GOLDEN, Expected, ExpectedImage
from seresnext.models import Preprocessing

TOLERANCE = 1e-4  # of the largest logit
# Width, height, mode and format. Odd sizes show errors of rounding in resize and crop.
_DRAWN = (
    (301, 227, "RGB", "JPEG"),
    (257, 389, "RGB", "JPEG"),
    (97, 61, "RGB", "JPEG"),
    (333, 335, "L", "JPEG"),
    (641, 127, "CMYK", "JPEG"),
    (275, 411, "RGB", "PNG"),
    (511, 299, "P", "PNG"),
    (225, 224, "RGBA", "PNG"),
)

Network = Callable[[Tensor], Tensor]  # a model of any kind: images N 3 H W to logits N num_classes, float32 on the CPU


def draw_golden() -> list[bytes]:
    """Return eight encoded images: shapes and noise. The second has an EXIF orientation, the first is progressive."""
    rng = np.random.default_rng(0)
    return [_draw(number, rng, *row) for number, row in enumerate(_DRAWN)]


def read_golden(folder: Path) -> list[bytes]:
    """Return the bytes of the user's images, in the order of the names. Raise DataError, or UsageError for too many."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not 1 <= len(paths) <= MOST_GOLDEN:
            raise UsageError(f"--golden {shown_path(folder)} has {len(paths)} files; give 1 to {MOST_GOLDEN} images")
        images = [path.read_bytes() for path in paths]
    except OSError as error:
        raise DataError(f"--golden {shown_path(folder)} cannot be read: {error.strerror}; give a folder") from None
    for path, data in zip(paths, images, strict=True):
        decode(data, shown_path(path), Decoding(MAX_PIXELS))  # A bad image is named as the user knows the image.
    return images


def write_golden(images: Sequence[bytes], folder: Path) -> list[str]:
    """Write the images as numbered files. Return the names: the user's own names may be private."""
    folder.mkdir()
    names = [f"{number}{ENDINGS[kind_of(data) or 'JPEG'][0]}" for number, data in enumerate(images)]
    for name, data in zip(names, images, strict=True):
        (folder / name).write_bytes(data)
    return names


def load_golden(folder: Path, names: Sequence[str], preprocessing: Preprocessing) -> Tensor:
    """Return the pixels of the images after decode, resize and crop, uint8 N H W 3. Raise DataError."""
    crop, decoding = preprocessing.crop, preprocessing.decoding(MAX_PIXELS)
    paths = [folder / name for name in names]
    return torch.stack([crop.decode_and_crop(path.read_bytes(), shown_path(path), decoding) for path in paths])


def compute_logits(network: Network, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the logits of pixels uint8 N H W 3, as float32 N num_classes."""
    with torch.inference_mode():
        return network(preprocessing.normalise(pixels).contiguous()).float()


def expect(names: Sequence[str], pixels: Tensor, logits: Tensor, classes: list[str]) -> Expected:
    """Return the record of the logits of the source model. Raise CheckpointError for logits that are not finite."""
    if not logits.isfinite().all():
        raise CheckpointError("the logits of the golden images are not finite; use another checkpoint")
    images = {
        name: ExpectedImage(pixels=pixels_digest(image), logits=[float(f"{value:.9g}") for value in row.tolist()])
        for name, image, row in zip(names, pixels, logits, strict=True)
    }
    return Expected(classes=classes, tolerance=TOLERANCE * max(1e-6, logits.abs().max().item()), images=images)


def pixels_digest(pixels: Tensor) -> str:
    """Return the SHA-256 of pixels."""
    return hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()


def _draw(number: int, rng: np.random.Generator, width: int, height: int, mode: str, kind: str) -> bytes:
    """Return an image as bytes: stripes of all widths, ellipses and noise, so that each filter gives other pixels."""
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, math.pi, 3)
    waves = np.sin((x[..., None] * np.cos(angle) + y[..., None] * np.sin(angle)) ** 2 / rng.uniform(200, 2000, 3))
    pixels = 128 + 70 * waves + rng.normal(0, 20, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = rng.integers(0, width), rng.integers(0, height)
        box = [int(left), int(top), int(left + rng.integers(8, 90)), int(top + rng.integers(8, 90))]
        pen.ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    if mode == "RGBA":
        image.putalpha(Image.fromarray((255 * x / width).astype(np.uint8)))
    file, exif = io.BytesIO(), Image.Exif()
    if number == 1:
        exif[ExifTags.Base.Orientation] = 6  # a camera on its side
    options = {"quality": 90, "exif": exif, "progressive": number == 0} if kind == "JPEG" else {}
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()
