"""Oracle: pickle and torch.save."""

import argparse
import io
import pickle
import time
from collections import OrderedDict

import pytest
import torch
from torch_files import tensor_pickle

from seresnext.weights.pickles import load_pickle


def refusal(program: bytes, room: int = 24) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is checked)
        load_pickle(io.BytesIO(program), room)
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": [1, -2, 2**40, 1.5, None, True, False]}, {"b": (), "c": (1, (2, 3), "é", 4)}, 7, {3: OrderedDict()}],
)
def test_plain_values(value: object) -> None:
    stream = io.BytesIO(pickle.dumps(value, protocol=2) + b"rest")
    assert load_pickle(stream)[0] == value
    assert stream.read() == b"rest"


def test_tensor() -> None:
    value, storages = load_pickle(io.BytesIO(tensor_pickle(6, 2, (2, 2), (1, 2))), room=24)
    torch.arange(6.0, out=storages["0"])
    assert value["w"].tolist() == [[2, 4], [3, 5]]
    assert "more bytes than the file" in refusal(tensor_pickle(6, 2, (2, 2), (1, 2)), room=23)


@pytest.mark.parametrize(
    ("numel", "offset", "shape", "stride"),
    [
        pytest.param(6, 1, (2, 3), (3, 1), id="offset"),
        pytest.param(6, -1, (2, 3), (3, 1), id="negative offset"),
        pytest.param(6, 0, (-2, -3), (3, 1), id="negative shape"),
        pytest.param(6, 0, (2, 3), (3,), id="short stride"),
        pytest.param(6, 0, (2**62, 4), (4, 1), id="overflow"),
        pytest.param(-6, 0, (2, 3), (3, 1), id="negative storage"),
    ],
)
def test_impossible_tensors(numel: int, offset: int, shape: tuple, stride: tuple) -> None:
    assert "RuntimeError" in refusal(tensor_pickle(numel, offset, shape, stride))


PROGRAMS = {
    "memo index": b"}Nr\xff\xff\xff\xffs.",
    "long number": b"\x8b\xff\xff\xff\x7f",
    "long text": b"X\xff\xff\xff\xff",
    "tuple as a key": b"}K\x01" + b"\x85q\x00h\x00\x86" * 100 + b"Ns.",
    "tuple in a set": b"\x8f(K\x01" + b"\x85q\x00h\x00\x86" * 100 + b"\x90.",
    "nothing": b"",
    "no value": b".",
    "open mark alone": b"(.",
    "no mark": b"t.",
    "no memo": b"h\x05.",
    "append to None": b"NNa.",
    "append to a dict": b"}(NNe.",
    "items of a list": b"](NNu.",
    "odd items": b"}(Nu.",
    "call of None": b"NNR.",
    "reference to None": b"NQ.",
    "reference to text": b"X\x01\x00\x00\x00aQ.",
    "reference in text": b"Pabc\n.",
    "copy of a dict": b"ccollections\nOrderedDict\n}\x85R.",
    "storage of a size": b"ctorch\nFloatStorage\nK\x01\x85R.",
    "arguments of no dict": b"cargparse\nNamespace\n)\x81Nb.",
    "arguments as a key": b"}cargparse\nNamespace\n)\x81Ns.",
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor\n)R.",
    "object of a number": b"K\x01)\x81.",
    "import": b"c__builtin__\neval\n.",
    "dotted import": b"ctorch\nFloatStorage.evil\n.",
    "no instruction": b"\xff",
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_without_sense_or_end(program: bytes) -> None:
    start = time.monotonic()
    refusal(b"\x80\x02" + program)
    assert time.monotonic() - start < 20


def test_storage_declared_twice() -> None:
    one, other = (tensor_pickle(numel, 0, (2,), (1,)) for numel in (6, 5))
    assert "declared twice" in refusal(b"\x80\x02(" + one[2:-1] + other[2:-1] + b"t.")
    same = b"\x80\x02(" + one[2:-1] + one[2:-1] + b"t."  # The control.
    assert len(load_pickle(io.BytesIO(same), 24)[1]) == 1


def test_attributes() -> None:
    """An OrderedDict with another `items` would break its readers."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb."
    assert "attributes" in refusal(program)
    assert load_pickle(io.BytesIO(program.replace(b"\x05\x00\x00\x00items", b"\x09\x00\x00\x00_metadata")))[0] == {}


def test_arguments_of_a_training_script() -> None:
    """The attributes of a Namespace are data."""
    value = {"args": argparse.Namespace(lr=0.1, mean=[1, 2], items=None, __setstate__=3, inner=argparse.Namespace(a=1))}
    assert load_pickle(io.BytesIO(pickle.dumps(value, protocol=2)))[0] == value
    itself = argparse.Namespace()
    itself.itself = itself
    found = load_pickle(io.BytesIO(pickle.dumps(itself, protocol=2)))[0]
    assert found.itself is found


def test_many_keys_of_one_hash() -> None:
    """Whole numbers that differ by 2^61 - 1 have one hash: a dict of n of them takes n^2 steps."""
    keys = [(2**61 - 1) * number for number in range(1, 60_000)]
    assert {hash(key) for key in keys} == {0}
    pairs = b"".join(b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in keys)
    start = time.monotonic()
    assert "very long number" in refusal(b"\x80\x02}(" + pairs + b"u.")
    assert time.monotonic() - start < 20


def test_dimensions_without_end() -> None:
    assert "6 dimensions" in refusal(tensor_pickle(1, 0, (1,) * 6, (1,) * 6))
    assert load_pickle(io.BytesIO(tensor_pickle(0, 0, (5, 0), (1, 1))))[0]["w"].shape == (5, 0)
