"""Near misses: what an author probably meant."""

from __future__ import annotations

from typing import get_args

import pytest

from seresnext.recipe.explain import _OPTIONS, COMMON_NAMES, all_keys, near_miss, unknown_key
from seresnext.recipe.schema import ModelName


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("seresnext05", "seresnext50"),
        ("SE-ResNeXt-50", "seresnext50"),
        ("se_resnext101", "seresnext101"),
        ("resnext26", "seresnext26"),
        ("seresnext101_32x4", "seresnext101_32x4d"),
        ("legacy-seresnext26-32x4d", "legacy_seresnext26_32x4d"),
        ("vit_base_patch16_224", None),
        ("", None),
    ],
)
def test_near_misses_of_models(written: str, meant: str | None) -> None:
    assert near_miss(written, list(get_args(ModelName))) == meant


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
def test_where_an_unknown_key_belongs(parent: str, name: str, hint: str) -> None:
    assert hint in unknown_key(parent, name)


def test_every_key_of_the_schema_is_known() -> None:
    keys = all_keys()
    assert [key for key in ("ema", "ema.decay", "optimizer", "length") if keys[key]] == ["ema", "optimizer"]
    assert len(keys) > 60


def test_words_of_other_tools_lead_to_keys_that_exist() -> None:
    for word, key in COMMON_NAMES.items():
        assert key in all_keys(), word
        assert word == word.lower().replace("-", "_")
        if word not in all_keys():  # as `model` is
            assert f" {key}" in unknown_key("", word)
    assert not COMMON_NAMES.keys() & _OPTIONS.keys()
