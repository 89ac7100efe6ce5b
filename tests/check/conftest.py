"""A narrow network, and measurements that take moments instead of seconds."""

from collections.abc import Callable

import pytest
import small_digits

from seresnext.check import checking, devices
from seresnext.recipe.load import load_recipe
from seresnext.recipe.schema import Recipe

SMALL = [
    "data.image_size=32", "data.workers=0", "model.num_classes=3", "batch={global_size: 8, micro_size: 4}",
    "schedule={name: cosine}", "length=10ep", "runtime.precision=fp32",
]  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """`small(*settings) -> Recipe` of a network of four narrow blocks. Each measurement is short."""
    monkeypatch.setattr("seresnext.models.registry.create_model", small_digits.small)
    for module, name in ((devices, "_WINDOW_SECONDS"), (devices, "_STEP_SECONDS"), (devices, "_MEMORY_SECONDS")):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr(devices, "_BATCH", 2)
    monkeypatch.setattr(checking, "_WRITTEN", 1 << 20)
    return lambda *settings: load_recipe("seresnext26", [*SMALL, *settings]).recipe
