"""Commands in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seresnext import cli
from seresnext.process.signals import StopRequest


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`prepare(*words, code=0)`: run `seresnext prepare` and check the exit code. Return standard output and error."""

    def run(*words: object, code: int = 0) -> str:
        found = cli.main(["prepare", *map(str, words)], StopRequest())
        output = "".join(capsys.readouterr())
        assert found == code, output
        assert "Traceback" not in output
        return output

    return run


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` with 23 images of two classes: JPEGs of at most 300 x 223, one gray, one PNG, one PNG named .jpg."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(23):
        folder = root / "train" / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (30, 40) if number == 3 else (200 + number, 300)
        small = rng.integers(0, 256, (8, 8) if number == 4 else (8, 8, 3), dtype=np.uint8)
        form = "PNG" if number in (5, 6) else "JPEG"
        name = f"{number:02}.{'png' if number == 5 else 'JPEG'}"
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / name, form, quality=92)
    return root
