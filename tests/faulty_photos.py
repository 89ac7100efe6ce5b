"""Photographs with known faults, for tests of the data doctor."""

import numpy as np
from encoded_images import encoded
from PIL import Image, ImageFilter, ImageOps


def photograph(number: int, side: int = 64) -> Image.Image:
    """Return smooth random colours with fine noise: as different from another number as two photographs."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side))  # bicubic
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, rng.uniform(3, 12), (side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90, **options: object) -> bytes:
    return encoded(image, quality=quality, **options)


BRIGHT = ImageOps.expand(Image.new("RGB", (10, 10)), 27, "white")  # A small black square.
FAULTS: dict[str, bytes] = {
    "train/a/broken.jpg": jpeg(photograph(0))[:-500],
    "train/a/text.jpg": b"no image",
    "train/a/small.jpg": jpeg(photograph(1, 15)),
    "train/a/dark.jpg": jpeg(photograph(2).point(lambda level: level // 4)),
    "train/a/bright.jpg": jpeg(BRIGHT),
    "train/a/empty.jpg": jpeg(Image.new("RGB", (64, 64), (90, 120, 90))),
    "train/a/blurred.jpg": jpeg(photograph(4).filter(ImageFilter.GaussianBlur(5))),
    "train/a/odd.jpg": jpeg(photograph(5).resize((256, 64))),
    "train/a/equal.jpg": jpeg(photograph(100)),  # train/a/0.jpg
    "train/a/near.jpg": jpeg(photograph(101).resize((90, 90)), 60),  # train/a/1.jpg
    "train/a/leak.jpg": jpeg(photograph(300).crop((2, 1, 63, 64))),  # val/a/0.jpg
    "train/b/clash.jpg": jpeg(photograph(102)),  # train/a/2.jpg
}
