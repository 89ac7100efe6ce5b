"""The commands `train` and `validate` with a network of 20,000 weights, for a checkpoint that fits into the repository.

python tests/small_digits.py train|validate ARGUMENTS...
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn


def small(_: str, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """Return an SE-ResNeXt of four blocks with 32 channels each, in the sizes of the checkpoint in tests/golden."""
    from seresnext.models import SENet, blocks, senet

    with patch.object(blocks, "EXPANSION", 1), patch.object(senet, "EXPANSION", 1):
        net = SENet((1, 1, 1, 1), num_classes, in_channels, cardinality=4, **options)
        block = partial(blocks.SEResNeXtBottleneck, cardinality=4, base_width=8, reduction=4)
        for number in (1, 2, 3, 4):
            sizes = {"in_channels": 64 if number == 1 else 32, "channels": 32, "count": 1}
            rate = iter([options.get("drop_path_rate", 0.0) * number / 4])
            net.set_submodule(f"layer{number}", senet._stage(block, rate, stride=min(number, 2), **sizes))
        net.num_features = 32
        net.reset_classifier(num_classes)
        net._initialise(options.get("zero_init_last", False))
    return net


def install(replace: Callable[[Any, str, Any], object] = setattr) -> None:
    """Use the network for trainings and validations."""
    from seresnext.models import pretrained, registry
    from seresnext.run import validate

    def identify(tensors: dict[str, Tensor], *_: object) -> pretrained.ModelSizes:
        return pretrained.ModelSizes("legacy_seresnext26_32x4d", len(tensors["last_linear.bias"]), 3)

    replace(registry, "create_model", small)
    replace(validate, "create_model", small)
    replace(pretrained, "identify_model", identify)


def main(command: str, arguments: list[str]) -> int:
    from seresnext import cli
    from seresnext.process.signals import StopRequest

    install()
    with StopRequest() as stop:
        return cli.main([command, *arguments], stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
