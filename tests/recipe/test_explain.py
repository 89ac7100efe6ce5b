"""Near misses: the closest correct name."""

from typing import get_args

import pytest

from seresnext.recipe.explain import _COMMON_NAMES, REMOVED, _normalized, all_keys, near_miss, unknown_key
from seresnext.recipe.schema import ModelName


@pytest.mark.parametrize(("written", "close"), [
    ("seresnext05", "seresnext50"), ("SE-ResNeXt-50", "seresnext50"), ("se_resnext101", "seresnext101"),
    ("resnext26", "seresnext26"), ("seresnext101-32x4d", "seresnext101_32x4d"), ("vit_base_patch16", None), ("", None),
])  # fmt: skip
def test_near_misses_of_models(written: str, close: str | None) -> None:
    assert near_miss(written, list(get_args(ModelName))) == close


def test_removed_keys_are_no_keys() -> None:
    assert not REMOVED.keys() & set(all_keys())
    assert all(key.partition("=")[0].rpartition(".")[0] in all_keys() for key in REMOVED)


@pytest.mark.parametrize(("parent", "name", "hint"), [
    ("", "optimizr", "did you mean optimizer?"),
    ("", "Length", "did you mean length?"),
    ("", "global-size", "did you mean batch.global_size?"),
    ("data", "batch_size", "did you mean batch.global_size or evaluation.batch_size?"),
    ("", "seed", "runtime.seed"),
    ("evaluation", "batchsize", "evaluation.batch_size"),
    ("optimizer", "learning_rate", "did you mean optimizer.lr?"),
    ("model", "label_smoothing", "did you mean loss.label_smoothing?"),
    ("data", "interpolaton", "did you mean augment.interpolation or evaluation.interpolation?"),
    ("nowhere", "nothing_like_it", "there is no section nowhere"),
    ("mix", "zzzzzz", "the keys of mix are mixup, cutmix, off_after"),
])  # fmt: skip
def test_unknown_key_gets_a_hint(parent: str, name: str, hint: str) -> None:
    assert hint in unknown_key(parent, name)


def test_names_of_other_tools_lead_to_existing_keys() -> None:
    for word, key in _COMMON_NAMES.items():
        assert key in all_keys(), word
        assert word == _normalized(word)
        assert f"did you mean {key}" in unknown_key("", word)
