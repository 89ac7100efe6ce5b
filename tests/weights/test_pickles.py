"""Oracle: pickle and torch.save, and torch's own unpickler as the negative control."""

import argparse
import io
import pickle
import pickletools
import re
import struct
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from seresnext.weights.pickles import Namespace, Storage, StoredTensor, describe


def refusal(program: bytes) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the decoder raises plain errors)
        describe(io.BytesIO(program))
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": [1, -2, 2**40, 1.5, None, True, False]}, {"b": (), "c": (1, (2, 3), "é", 4)}, 7, {3: OrderedDict()}],
)
def test_plain_values(value: object) -> None:
    stream = io.BytesIO(pickle.dumps(value, protocol=2) + b"rest")
    assert describe(stream).value == value
    assert stream.read() == b"rest"


def test_tensor(tensor_pickle) -> None:
    storage = Storage("0", torch.float32, 6)
    found = describe(io.BytesIO(tensor_pickle(6, 2, (2, 2), (1, 2))))
    assert found.value == {"w": StoredTensor(storage, 2, (2, 2), (1, 2))}
    assert found.storages == {"0": storage}
    assert storage.nbytes == 24
    assert found.value["w"].nbytes == 16


def long(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["builtins\nbytearray", "torch\nTensor", "torch\nFloatStorage"])
def test_calls_that_allocate(name: str) -> None:
    message = refusal(f"\x80\x02c{name}\n".encode("latin-1") + long(600_000_000) + b"\x85R.")
    assert name.replace("\n", ".") in message


def test_torch_lets_such_calls_pass(tmp_path: Path, save_pickle) -> None:
    """The control: 150 bytes make torch allocate any number of bytes, here 12,345,678."""
    save_pickle(b"\x80\x02cbuiltins\nbytearray\n" + long(12_345_678) + b"\x85R.", tmp_path / "bomb", [])
    assert (tmp_path / "bomb").stat().st_size < 250
    assert len(torch.load(tmp_path / "bomb", weights_only=True)) == 12_345_678


@pytest.mark.parametrize(
    ("numel", "offset", "shape", "stride"),
    [
        pytest.param(1, 0, (10**6, 10**6), (0, 0), id="stride 0"),
        pytest.param(6, 0, (2, 3), (1, 1), id="overlap"),
        pytest.param(6, 0, (2, 2), (3, 1), id="gap"),
        pytest.param(6, 1, (2, 3), (3, 1), id="offset"),
        pytest.param(6, 7, (0,), (1,), id="offset of nothing"),
        pytest.param(6, -1, (2, 3), (3, 1), id="negative offset"),
        pytest.param(6, 0, (-2, -3), (3, 1), id="negative shape"),
        pytest.param(6, 0, (2, 3), (3,), id="short stride"),
        pytest.param(6, 0, (2**62, 4), (4, 1), id="overflow"),
        pytest.param(-6, 0, (2, 3), (3, 1), id="negative storage"),
    ],
)
def test_impossible_tensors(tensor_pickle, numel: int, offset: int, shape: tuple, stride: tuple) -> None:
    assert re.match("(a tensor|the storage) ", refusal(tensor_pickle(numel, offset, shape, stride)))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"N" * 2_000_000 + b".", id="instructions"),
        pytest.param(b"}Nr\xff\xff\xff\xffs.", id="memo index"),
        pytest.param(b"\x8b\xff\xff\xff\x7f", id="long number"),
        pytest.param(b"X\xff\xff\xff\xff", id="long text"),
        pytest.param(b"}K\x01" + b"\x85q\x00h\x00\x86" * 100 + b"Ns.", id="tuple as a key"),
        pytest.param(b"\x8f(K\x01" + b"\x85q\x00h\x00\x86" * 100 + b"\x90.", id="tuple in a set"),
        pytest.param(b"(" * 600_000 + b"t" * 600_000 + b".", id="nesting"),
    ],
)
def test_programs_without_end(program: bytes) -> None:
    start = time.monotonic()
    refusal(b"\x80\x02" + program)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b".", id="no value"),
        pytest.param(b"(.", id="open mark alone"),
        pytest.param(b"t.", id="no mark"),
        pytest.param(b"h\x05.", id="no memo"),
        pytest.param(b"NNa.", id="append to None"),
        pytest.param(b"}(NNe.", id="append to a dict"),
        pytest.param(b"](NNu.", id="items of a list"),
        pytest.param(b"}(Nu.", id="odd items"),
        pytest.param(b"NNR.", id="call of None"),
        pytest.param(b"NQ.", id="reference to None"),
        pytest.param(b"X\x01\x00\x00\x00aQ.", id="reference to text"),
        pytest.param(b"Pabc\n.", id="reference in text"),
        pytest.param(b"ccollections\nOrderedDict\nN\x85R.", id="dict of None"),
        pytest.param(b"ctorch._utils\n_rebuild_tensor\n)R.", id="tensor of nothing"),
        pytest.param(b"ctorch._utils\n_rebuild_parameter\n}\x89}\x87R.", id="parameter of a dict"),
        pytest.param(b"ccollections\nOrderedDict\n)\x81.", id="other way to call"),
        pytest.param(b"NN\x81.", id="new object of nothing"),
        pytest.param(b"cargparse\nNamespace\nN\x85\x81.", id="arguments of None"),
        pytest.param(b"cargparse\nNamespace\n)R.", id="call of arguments"),
        pytest.param(b"cargparse\nNamespace\n)\x81Nb.", id="attributes that are no dict"),
        pytest.param(b"}cargparse\nNamespace\n)\x81Ns.", id="arguments as a key"),
        pytest.param(b"c__builtin__\neval\n.", id="import"),
        pytest.param(b"ctorch\nFloatStorage.evil\n.", id="dotted import"),
        pytest.param(b"\xff", id="no instruction"),
    ],
)
def test_nonsense(program: bytes) -> None:
    refusal(b"\x80\x02" + program)


def test_storage_declared_twice(tensor_pickle) -> None:
    one, other = (tensor_pickle(numel, 0, (2,), (1,)) for numel in (6, 7))
    both = b"\x80\x02(" + one[2:-1] + other[2:-1] + b"t."
    assert "declared twice" in refusal(both)
    same = b"\x80\x02(" + one[2:-1] + one[2:-1] + b"t."
    assert len(describe(io.BytesIO(same)).storages) == 1


def test_attributes() -> None:
    """An OrderedDict with another `items` would break its readers."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb."
    assert "attributes" in refusal(program)
    assert describe(io.BytesIO(program.replace(b"\x05\x00\x00\x00items", b"\x09\x00\x00\x00_metadata"))).value == {}


def test_arguments_of_a_training_script() -> None:
    """The attributes of a Namespace are data. No object of argparse is made."""
    value = {"args": argparse.Namespace(lr=0.1, mean=[1, 2], items=None, __setstate__=3, inner=argparse.Namespace(a=1))}
    found = describe(io.BytesIO(pickle.dumps(value, protocol=2))).value["args"]
    assert type(found) is Namespace
    assert found.values["inner"].values == {"a": 1}
    assert {name: found.values[name] for name in ("lr", "mean", "items", "__setstate__")} == {
        "lr": 0.1, "mean": [1, 2], "items": None, "__setstate__": 3,
    }  # fmt: skip
    itself = argparse.Namespace()
    itself.itself = itself
    found = describe(io.BytesIO(pickle.dumps(itself, protocol=2))).value
    assert found.values["itself"] is found


@pytest.mark.parametrize(("count", "words"), [(60_000, "very long number"), (10**6, "instructions")])
def test_a_million_keys_of_one_hash(count: int, words: str) -> None:
    """Whole numbers that differ by 2^61 - 1 have one hash: a dict of n of them takes n^2 steps."""
    keys = [(2**61 - 1) * number for number in range(1, count)]
    assert {hash(key) for key in keys} == {0}
    long = b"".join(b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in keys)
    start = time.monotonic()
    assert words in refusal(b"\x80\x02}(" + long + b"u.")
    assert time.monotonic() - start < 5


def test_dimensions_without_end(tensor_pickle) -> None:
    assert "17 dimensions" in refusal(tensor_pickle(1, 0, (1,) * 17, (1,) * 17))
    assert "does not fit" in refusal(tensor_pickle(0, 0, (2**40, 0), (1, 1)))
    assert describe(io.BytesIO(tensor_pickle(0, 0, (5, 0), (1, 1)))).value["w"].shape == (5, 0)


PIECES = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.arg is None),
    *(b"K\0", b"K\x01", b"q\0", b"q\x01", b"h\0", b"h\x01", b"X\x01\0\0\0a", b"X\x07\0\0\0storage", b"\x8a\x01\x7f"),
    *(
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cos\nsystem\n",
        b"cargparse\nNamespace\n",
    ),
]


@pytest.mark.parametrize("examples", [1500, pytest.param(20_000, marks=pytest.mark.full)])
def test_programs_at_random(examples: int) -> None:
    """Random instructions give a value or a ValueError, and import nothing."""
    outcomes = set()

    @settings(max_examples=examples, deadline=None, phases=(Phase.explicit, Phase.generate))
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
