"""Near misses: the closest correct name."""

from __future__ import annotations

from typing import get_args

import pytest

from seresnext.recipe.explain import _OPTIONS, COMMON_NAMES, REMOVED, all_keys, near_miss, one_of, unknown_key
from seresnext.recipe.schema import ModelName


@pytest.mark.parametrize(
    ("written", "close"),
    [
        ("seresnext05", "seresnext50"),
        ("SE-ResNeXt-50", "seresnext50"),
        ("se_resnext101", "seresnext101"),
        ("resnext26", "seresnext26"),
        ("seresnext101-32x4d", "seresnext101_32x4d"),
        ("legacy-seresnext26-32x4d", "legacy_seresnext26_32x4d"),
        ("vit_base_patch16_224", None),
        ("", None),
    ],
)
def test_near_misses_of_models(written: str, close: str | None) -> None:
    assert near_miss(written, list(get_args(ModelName))) == close


@pytest.mark.parametrize(("words", "text"), [(["1"], "1"), (["1", "2"], "1 or 2"), (["1", "2", "3"], "1, 2 or 3")])
def test_one_of(words: list[str], text: str) -> None:
    assert one_of(words) == text


def test_removed_keys_are_no_keys() -> None:
    assert not REMOVED.keys() & all_keys().keys()
    assert all(key.partition("=")[0].rpartition(".")[0] in all_keys() for key in REMOVED)


@pytest.mark.parametrize(
    ("parent", "name", "hint"),
    [
        ("", "optimizr", "did you mean optimizer?"),
        ("", "Length", "did you mean length?"),
        ("", "global-size", "did you mean batch.global_size?"),
        ("", "batch_size", "batch.global_size"),
        ("", "batch-size", "batch.micro_size"),
        ("data", "batch_size", "batch.global_size"),
        ("", "lr", "optimizer.lr"),
        ("", "epochs", "length, such as 90ep"),
        ("", "workers", "data.workers"),
        ("", "seed", "runtime.seed"),
        ("", "resume", "--resume"),
        ("evaluation", "batchsize", "evaluation.batch_size"),
        ("optimizer", "learning_rate", "did you mean optimizer.lr?"),
        ("optimizer", "wieght_decay", "did you mean optimizer.weight_decay?"),
        ("model", "label_smoothing", "did you mean loss.label_smoothing?"),
        ("data", "interpolaton", "did you mean augment.interpolation or evaluation.interpolation?"),
        ("nowhere", "nothing_like_it", "there is no section nowhere"),
        ("mix", "zzzzzz", "the keys of mix are mixup, cutmix, off_after"),
    ],
)
def test_unknown_key_gets_a_hint(parent: str, name: str, hint: str) -> None:
    assert hint in unknown_key(parent, name)


def test_all_keys_has_sections_and_values() -> None:
    keys = all_keys()
    assert [key for key in ("ema", "ema.decay", "optimizer", "length") if keys[key]] == ["ema", "optimizer"]
    assert len(keys) > 60


def test_names_of_other_tools_lead_to_existing_keys() -> None:
    for word, key in COMMON_NAMES.items():
        assert key in all_keys(), word
        assert word == word.lower().replace("-", "_")
        if word not in all_keys():  # `model` is a key itself
            assert f" {key}" in unknown_key("", word)
    assert not COMMON_NAMES.keys() & _OPTIONS.keys()
