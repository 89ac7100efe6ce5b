"""Oracle: pickle and torch.save."""

import argparse
import io
import pickle
import re
import time
from collections import OrderedDict

import pytest
import torch
from torch_files import long, tensor_pickle

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
    assert describe(stream)[0] == value
    assert stream.read() == b"rest"


def test_tensor() -> None:
    storage = Storage("0", torch.float32, 6)
    value, storages = describe(io.BytesIO(tensor_pickle(6, 2, (2, 2), (1, 2))))
    assert value == {"w": StoredTensor(storage, 2, (2, 2), (1, 2))}
    assert storages == {"0": storage}
    assert storage.nbytes == 24
    assert value["w"].nbytes == 16


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["builtins\nbytearray", "torch\nTensor", "torch\nFloatStorage"])
def test_calls_that_allocate(name: str) -> None:
    message = refusal(f"\x80\x02c{name}\n".encode("latin-1") + long(600_000_000) + b"\x85R.")
    assert name.replace("\n", ".") in message


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
def test_impossible_tensors(numel: int, offset: int, shape: tuple, stride: tuple) -> None:
    assert re.match("(a tensor|the storage) ", refusal(tensor_pickle(numel, offset, shape, stride)))


PROGRAMS = {
    "instructions": b"N" * 2_000_000 + b".",
    "memo index": b"}Nr\xff\xff\xff\xffs.",
    "long number": b"\x8b\xff\xff\xff\x7f",
    "long text": b"X\xff\xff\xff\xff",
    "tuple as a key": b"}K\x01" + b"\x85q\x00h\x00\x86" * 100 + b"Ns.",
    "tuple in a set": b"\x8f(K\x01" + b"\x85q\x00h\x00\x86" * 100 + b"\x90.",
    "nesting": b"(" * 600_000 + b"t" * 600_000 + b".",
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
    "dict of None": b"ccollections\nOrderedDict\nN\x85R.",
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor\n)R.",
    "parameter of a dict": b"ctorch._utils\n_rebuild_parameter\n}\x89}\x87R.",
    "other way to call": b"ccollections\nOrderedDict\n)\x81.",
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


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"cargparse\nNamespace\nN\x85\x81.", id="arguments of None"),
        pytest.param(b"cargparse\nNamespace\n)R.", id="call of arguments"),
        pytest.param(b"cargparse\nNamespace\n)\x81Nb.", id="attributes that are no dict"),
        pytest.param(b"}cargparse\nNamespace\n)\x81Ns.", id="arguments as a key"),
    ],
)
def test_arguments_without_sense(program: bytes) -> None:
    refusal(b"\x80\x02" + program)


def test_storage_declared_twice() -> None:
    one, other = (tensor_pickle(numel, 0, (2,), (1,)) for numel in (6, 7))
    both = b"\x80\x02(" + one[2:-1] + other[2:-1] + b"t."
    assert "declared twice" in refusal(both)
    same = b"\x80\x02(" + one[2:-1] + one[2:-1] + b"t."
    assert len(describe(io.BytesIO(same))[1]) == 1


def test_attributes() -> None:
    """An OrderedDict with another `items` would break its readers."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb."
    assert "attributes" in refusal(program)
    assert describe(io.BytesIO(program.replace(b"\x05\x00\x00\x00items", b"\x09\x00\x00\x00_metadata")))[0] == {}


def test_arguments_of_a_training_script() -> None:
    """The attributes of a Namespace are data. No object of argparse is made."""
    value = {"args": argparse.Namespace(lr=0.1, mean=[1, 2], items=None, __setstate__=3, inner=argparse.Namespace(a=1))}
    found = describe(io.BytesIO(pickle.dumps(value, protocol=2)))[0]["args"]
    assert type(found) is Namespace
    assert found.values["inner"].values == {"a": 1}
    assert {name: found.values[name] for name in ("lr", "mean", "items", "__setstate__")} == {
        "lr": 0.1, "mean": [1, 2], "items": None, "__setstate__": 3,
    }  # fmt: skip
    itself = argparse.Namespace()
    itself.itself = itself
    found = describe(io.BytesIO(pickle.dumps(itself, protocol=2)))[0]
    assert found.values["itself"] is found


@pytest.mark.parametrize(("count", "words"), [(60_000, "very long number"), (10**6, "instructions")])
def test_a_million_keys_of_one_hash(count: int, words: str) -> None:
    """Whole numbers that differ by 2^61 - 1 have one hash: a dict of n of them takes n^2 steps."""
    keys = [(2**61 - 1) * number for number in range(1, count)]
    assert {hash(key) for key in keys} == {0}
    pairs = b"".join(b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in keys)
    start = time.monotonic()
    assert words in refusal(b"\x80\x02}(" + pairs + b"u.")
    assert time.monotonic() - start < 5


def test_dimensions_without_end() -> None:
    assert "17 dimensions" in refusal(tensor_pickle(1, 0, (1,) * 17, (1,) * 17))
    assert "does not fit" in refusal(tensor_pickle(0, 0, (2**40, 0), (1, 1)))
    assert describe(io.BytesIO(tensor_pickle(0, 0, (5, 0), (1, 1))))[0]["w"].shape == (5, 0)
