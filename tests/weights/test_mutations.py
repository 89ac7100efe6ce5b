"""Files changed at random: each file is refused, or the original content is read.

The old format has no checksum over the numbers: other numbers can be read, but no other name, shape or type. The tests
run longer with --full.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from seresnext.checkpoint import file_format, store
from seresnext.errors import CheckpointError
from seresnext.weights import read_weights
from seresnext.weights.pickles import describe

TENSORS = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "n": torch.tensor(7), "half": torch.ones(4).half()}
EXAMPLES = {"some": 150, "many": 2000}
HOW_OFTEN = [pytest.param("some"), pytest.param("many", marks=pytest.mark.full)]
# No shrinking: a shorter file is no better example, and each try costs a read.
OPTIONS: dict[str, Any] = {
    "deadline": None,
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}

# Place, amount and kind of a change: bytes are replaced, inserted, removed or repeated.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "cut", "repeat", "flip"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 24),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=3,
)


def altered(data: bytes, changes: list[tuple[str, float, int, bytes]]) -> bytes:
    for kind, where, count, content in changes:
        place = int(where * len(data))
        head, tail = data[:place], data[place:]
        if kind == "flip" and tail:
            data = head + bytes([tail[0] ^ (1 << count % 8)]) + tail[1:]
        else:
            middle = {"replace": content, "insert": content, "repeat": tail[:count] * 2}.get(kind, b"")
            skipped = {"replace": len(content), "insert": 0}.get(kind, count)
            data = head + middle + tail[skipped:]
    return data


def content(kind: str, path: Path) -> bytes:
    """Write a file of one kind and return its bytes."""
    if kind == "checkpoint":
        file_format.write_synced(path, *file_format.header(TENSORS, {"step": "1"}))
    elif kind == "safetensors":
        save_file(TENSORS, path, {"a": "b"})
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("often", HOW_OFTEN)
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "checkpoint"])
def test_altered_files(tmp_path: Path, kind: str, often: str) -> None:
    path = tmp_path / ("weights.pth" if kind in ("zip", "old") else "weights.safetensors")
    whole = content(kind, path)
    outcomes = {"read": 0, "refused": 0}
    read = store.read if kind == "checkpoint" else read_weights

    def check(found: dict[str, Tensor]) -> None:
        if kind in ("zip", "checkpoint"):
            assert found.keys() == TENSORS.keys()
            assert all(found[name].equal(one) and found[name].dtype == one.dtype for name, one in TENSORS.items())
        assert sum(tensor.nbytes for tensor in found.values()) == sum(tensor.nbytes for tensor in TENSORS.values())

    @settings(max_examples=EXAMPLES[often], **OPTIONS)
    @given(CHANGES)
    def one(changes: list[tuple[str, float, int, bytes]]) -> None:
        data = altered(whole, changes)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(action="ignore"):  # zipfile warns of a name that occurs twice.
                tensors, _ = read(path)
        except CheckpointError as error:
            assert str(error).isprintable()  # noqa: PT017
            outcomes["refused"] += 1
        else:
            assert data == whole or kind != "checkpoint"
            check(tensors)
            outcomes["read"] += 1

    check(read(path)[0])
    one()
    assert outcomes["refused"] > 0


PIECES = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None),
    *(b"K\0", b"K\x01", b"q\0", b"q\x01", b"h\0", b"h\x01", b"X\x01\0\0\0a", b"X\x07\0\0\0storage", b"\x8a\x01\x7f"),
    *(
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cos\nsystem\n",
    ),
]


@pytest.mark.parametrize("often", HOW_OFTEN)
def test_programs_at_random(often: str) -> None:
    """Random instructions give a value or a ValueError, and import nothing."""
    outcomes = set()

    @settings(max_examples=10 * EXAMPLES[often], **OPTIONS)
    @given(st.lists(st.sampled_from(PIECES), max_size=30))
    def one(pieces: list[bytes]) -> None:
        try:
            describe(io.BytesIO(b"\x80\x02" + b"".join(pieces) + b"."))
            outcomes.add("value")
        except ValueError:
            outcomes.add("refused")

    one()
    describe(io.BytesIO(b"\x80\x02N."))
    assert "refused" in outcomes
