"""A picture of the first training images, as the network sees the images, with their labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from seresnext.printable import printable

_COLUMNS, _ROWS, _SIDE, _TEXT, _GAP = 8, 4, 160, 36, 8
_LONGEST = 26  # characters of a line


def draw_batch(
    images: Tensor, labels: Tensor, names: Sequence[str], mean: Sequence[float], std: Sequence[float], path: Path
) -> None:
    """Write the first images of a batch as a PNG: one grid, the class under each image. Raises OSError.

    `images` N C H W are normalised with `mean` and `std`. `labels` are N, or N K for mixed images, whose two largest
    shares are shown.
    """
    count = min(len(images), _COLUMNS * _ROWS)
    columns = min(count, _COLUMNS)
    size = (columns * (_SIDE + _GAP) + _GAP, -(-count // columns) * (_SIDE + _TEXT + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (std, mean))
    pixels = images[:count].detach().float().cpu() * scale + shift
    pixels = (pixels * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    for place, (array, label) in enumerate(zip(pixels, labels[:count].cpu(), strict=True)):
        x = _GAP + place % columns * (_SIDE + _GAP)
        y = _GAP + place // columns * (_SIDE + _TEXT + _GAP)
        image = Image.fromarray(array if array.shape[2] == 3 else np.repeat(array[..., :1], 3, axis=2))
        sheet.paste(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if image.width < 80 else None), (x, y))
        pen.text((x, y + _SIDE + 2), _caption(label, names), "black", font)
    sheet.save(path)


def _caption(label: Tensor, names: Sequence[str]) -> str:
    if label.ndim == 0:
        return printable(names[int(label)], _LONGEST)
    shares, classes = label.topk(min(2, len(label)))
    pairs = [(float(share), int(number)) for share, number in zip(shares, classes, strict=True) if share > 0]
    return "\n".join(f"{100 * share:.0f} % {printable(names[number], _LONGEST - 6)}" for share, number in pairs)
