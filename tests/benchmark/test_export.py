"""A small benchmark of exports."""

import pytest


@pytest.mark.full
def test_each_kind_has_size_latency_and_speed(bench):
    words = ["--model", "seresnext26", "--kinds", "weights", "folded", "--batch-size", "2", "--rounds", "1"]
    figures, printed = bench("export", *words)
    kinds = figures["kinds"]
    assert list(kinds) == ["pytorch", "weights", "folded"]
    for row in kinds.values():
        assert row["bytes"] == pytest.approx(4 * 16_790_280, rel=0.01)
        assert row["latency_ms"] > 0
        assert row["images_per_second"] > 0
    assert kinds["pytorch"]["ratio"] == 1
    assert "images/s" in printed
