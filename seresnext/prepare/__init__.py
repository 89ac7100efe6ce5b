"""Commands that make image folders and shards, and check downloads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output` at the end of the block: complete or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        yield Path(temporary) / output.name
        (Path(temporary) / output.name).rename(output)
