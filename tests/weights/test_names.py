import pytest

from seresnext.errors import CheckpointError
from seresnext.weights.names import listed, model_tensors, printable, without_wrappers


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes(prefix: str) -> None:
    """Only at the start: a module may well be called `module`."""
    assert without_wrappers({f"{prefix}layer1.module.weight": 1}, "f") == {"layer1.module.weight": 1}


def test_order_is_kept() -> None:
    assert list(without_wrappers({"module.b": 1, "a": 2}, "f")) == ["b", "a"]


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(CheckpointError, match="f has the tensor a twice"):
        without_wrappers({"a": 1, "module.a": 2}, "f")


def test_ema_before_model() -> None:
    tensors = {"model.a": 1, "ema._orig_mod.a": 2, "optimizer.momentum.a": 3}
    assert model_tensors(tensors, "f") == {"a": 2}
    assert model_tensors({"model.a": 1, "optimizer.momentum.a": 3}, "f") == {"a": 1}
    assert model_tensors({"a": 1}, "f") == {"a": 1}


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\r", "\x00", "\u202e", "\u2028", "\udc80", "\x9b"])
def test_control_characters(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


def test_ordinary_text_stays() -> None:
    assert printable("layer1.0.größe 日本") == "layer1.0.größe 日本"


def test_length_is_capped() -> None:
    assert printable("\x00" * 10**7) == printable("\x00" * 200)
    assert len(printable("\x00" * 10**7)) == 200
    assert len(printable("a" * 200)) == 200
    assert printable("a" * 201).endswith("a...")


def test_listed() -> None:
    assert listed(["a", "b"], most=2) == ["a", "b"]
    assert listed(["a"] * 3000, most=1) == ["a", "... and 2,999 more"]
