import pytest
import timm

from seresnext.errors import UsageError
from seresnext.models import MODELS, canonical_name, create_model
from seresnext.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from seresnext.models.registry import SHORT_NAMES


def test_names() -> None:
    assert {f"seresnext{depth}": f"legacy_seresnext{depth}_32x4d" for depth in (26, 50, 101)} == SHORT_NAMES
    for short, long in SHORT_NAMES.items():
        assert canonical_name(short) == canonical_name(long) == long


@pytest.mark.parametrize(
    ("name", "meant"),
    [("seresnet50", "seresnext50"), ("legacy_seresnext50", "legacy_seresnext50_32x4d"), ("SEResNeXt50", ""), ("", "")],
)
def test_unknown_name(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match="known: seresnext26, ") as caught:
        canonical_name(name)
    if meant:
        assert f"did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize(
    "sizes", [{"num_classes": -1}, {"in_channels": 0}, {"drop_rate": 1.0}, {"drop_rate": -0.1}, {"drop_path_rate": 1.0}]
)
def test_impossible_sizes(sizes: dict) -> None:
    with pytest.raises(UsageError, match="seresnext26 cannot be made"):
        create_model("seresnext26", **sizes)


def test_preprocessing_and_names_are_those_of_timm() -> None:
    for name, row in MODELS.items():
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        assert row.interpolation == config.interpolation
        assert row.image_size == (config.test_input_size or config.input_size)[-1]
        assert row.crop_pct == (config.test_crop_pct or config.crop_pct)
        assert config.input_size == (3, 224, 224)
        assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
        assert row.weights_urls[0] == config.url
