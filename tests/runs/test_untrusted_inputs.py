"""Recipes, images and links that were made to do harm, given to the commands: refused in little time and memory.

tests/resource_probe.py measures both. tests/data has more tests of images, archives and indices.
"""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_checkpoints import changed, write_checkpoint
from fuzzing.formats import png_chunk
from PIL import Image
from resource_probe import Probe, assert_refused

pytestmark = pytest.mark.runs

RECIPES: dict[str, Callable[[], str]] = {
    "aliases": lambda: "\n".join(
        ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    ),
    "50 MB": lambda: "model: {name: " + "x" * (50 << 20) + "}",
    "nesting of mappings": lambda: "model: " + "{a: " * 20_000,
    "keys": lambda: "".join(f"{'k' * 60}{number}: 1\n" for number in range(13_000)),
    "unknown keys": lambda: "".join(f"{'optimiser' * 8}{number}: 1\n" for number in range(990)),
    "one line": lambda: "model: {name: " + "a, " * 300_000 + "}",
    "escapes": lambda: 'model: "' + "\\u0041" * 160_000 + '"',
    "a Python object": lambda: "model: !!python/object/apply:os.system ['touch {canary}']",
    "a terminal": lambda: 'model: {name: "\\e[2J"}',
    "replicas": lambda: "model: {name: seresnext26}\nbatch: {global_size: 1000000000000000003, micro_size: 1}",
    "a device": lambda: "base: /dev/zero\nmodel: {name: seresnext26}",
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(measure: Probe, tmp_path: Path, case: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "recipe.yaml"
    path.write_text(RECIPES[case]().replace("{canary}", str(canary)))
    assert_refused(measure("train.py", "--recipe", path, "--print-recipe"), code=2, seconds=30)
    assert not canary.exists()


def test_other_readers_of_yaml(measure: Probe, tmp_path: Path) -> None:
    """The control: 400 bytes that a list of all values would need a gigabyte of values for, and a command that runs."""
    canary, path = tmp_path / "canary", tmp_path / "recipe.yaml"
    path.write_text(RECIPES["aliases"]())
    assert path.stat().st_size < 600
    count = f"import yaml; x = yaml.safe_load(open({str(path)!r}))['a9']; n = 1\n"
    count += "while isinstance(x, list): n *= len(x); x = x[0]\nprint(n)"
    assert measure("-c", count).stdout.split() == [str(9**9)]
    path.write_text(RECIPES["a Python object"]().replace("{canary}", str(canary)))
    measure("-c", f"import yaml; yaml.unsafe_load(open({str(path)!r}))")
    assert canary.exists()


def picture(width: int, height: int) -> bytes:
    """A PNG of black pixels in one bit each."""
    rows = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    body = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def lying_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


PICTURES: dict[str, Callable[[], bytes]] = {
    "13,000 x 13,000": lambda: picture(13_000, 13_000),
    "a JPEG that lies": lying_jpeg,
    "long": lambda: picture(1_000_000, 1),
    "text": lambda: (
        picture(8, 8)[:33] + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20))) + picture(8, 8)[33:]
    ),
}


@pytest.mark.parametrize("case", PICTURES)
def test_images(measure: Probe, untrained: Any, metadata: Any, images: Path, tmp_path: Path, case: str) -> None:
    root = tmp_path / "root"
    shutil.copytree(images / "val", root / "val")
    victim = root / "val" / "class_1" / "2.jpg"
    victim.write_bytes(PICTURES[case]())
    assert victim.stat().st_size < 400_000
    values = changed(metadata, {"recipe.data.workers": 0})
    path = write_checkpoint(tmp_path / "c.safetensors", untrained, values)
    usual = measure("validate.py", "--checkpoint", path)
    result = measure("validate.py", "--checkpoint", path, "--data", root)
    assert result.megabytes < usual.megabytes + 100
    if case != "text":  # That is passed over.
        assert "class_1/2.jpg" in assert_refused(result, code=3, megabytes=usual.megabytes + 100)


def test_pillow_alone_takes_much(measure: Probe, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(PICTURES["13,000 x 13,000"]())
    program = (
        f"import warnings, PIL.Image; warnings.simplefilter('ignore'); PIL.Image.open({str(path)!r}).convert('RGB')"
    )
    assert measure("-c", program).megabytes > 600


def test_links_and_pipes(measure: Probe, images: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("loop.pth", "pipe.pth", "zero.safetensors", "none.pth", "."):
        for command, *more in (["validate"], ["predict", images / "val/class_0/0.jpg"]):
            words = ("seresnext/__main__.py", command, "--checkpoint", tmp_path / name, *more)
            assert_refused(measure(*words, limit=10), seconds=5)
    for name in ("loop.pth", "pipe.pth"):
        assert_refused(measure("train.py", "--recipe", tmp_path / name, limit=10), code=2, seconds=5)
