"""The benchmark of the loader with a small data set: figures of our loader and of a peer are in the promised fields."""

import pytest


@pytest.mark.full
def test_figures_are_measured_and_written(bench, tiny_image_folder):
    options = ["--batch", "4", "--epochs", "2", "--peer", "torchvision", "--breakdown", "--orientation", "6"]
    figures, _ = bench("loader", "--data", tiny_image_folder(), *options)
    assert figures["part"] == "loader"
    assert figures["images"] == 24
    assert len(figures["epochs"]) == len(figures["peer"]["torchvision"]["epochs"]) == 2
    assert min(figures["epochs"]) <= figures["images_per_second"] <= max(figures["epochs"])
    assert figures["ratio"]["torchvision"] > 0
    assert figures["ratio"]["orientation 6"] > 0
    assert figures["breakdown of orientation 6"].keys() == figures["breakdown"].keys()
    breakdown = figures["breakdown"]
    parts = [breakdown[name] for name in ("read", "header", "decode", "resize", "collate")]
    assert all(part >= 0 for part in parts)
    assert abs(sum(parts) - breakdown["total"]) < 1
    assert 0 < breakdown["decoder_share"] < 1
    assert figures["machine"]["cores"] >= 1
