"""The benchmark of a validation: whole commands on few images, and results that differ are an error."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmark import validate

from seresnext.errors import Failure

LOGITS = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
Measured = Callable[..., tuple[dict[str, Any], list[list[str]]]]


@pytest.mark.full
def test_figures_are_measured_and_written(bench, tiny_image_folder):
    options = ["--batch", "8", "--rounds", "1", "--workers", "1", "--peer", "timm"]
    figures, printed = bench("validate", "--data", tiny_image_folder(val_per_class=2) / "val", *options)
    assert figures["images"] == 12
    assert figures["top1"] == figures["peer_top1"]
    assert figures["logits_difference"] <= 1e-4
    assert figures["same_class"] == 1
    (peer,) = figures["peer"]["timm_api"]["rounds"]
    assert figures["ratio"]["timm_api"] == pytest.approx(figures["rounds"][0] / peer)
    assert "timm_api" in printed


@pytest.fixture
def measure_without_networks(measure, tiny_image_folder, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """`f(ours, top1, *words) -> figures, commands`: our logits and top-1 are given, timm's are LOGITS and 25 %."""

    def run(ours: np.ndarray, top1: float, *words: object) -> tuple[dict[str, Any], list[list[str]]]:
        commands = []

        def call(command: Sequence[object]) -> None:
            commands.append([*map(str, command)])
            if str(command[-1]).endswith("logits.npy"):
                np.save(str(command[-1]), LOGITS)
                Path(str(command[-2])).write_text(json.dumps({"top1": 25.0}))

        result = SimpleNamespace(logits=ours, metrics={"top1": top1})
        monkeypatch.setattr(validate, "validate", lambda *_: SimpleNamespace(result=result))
        monkeypatch.setattr(validate, "_call", call)
        monkeypatch.setattr(validate, "_draw_weights", lambda name, classes, images, path: path)
        data = tiny_image_folder() / "val"
        return measure(validate, "--data", data, "--peer", "timm", "--rounds", "2", *words), commands

    return run


def test_the_validation_of_a_checkout_takes_turns_with_ours(measure_without_networks: Measured, tmp_path: Path):
    (tmp_path / "validate.py").touch()
    figures, commands = measure_without_networks(LOGITS, 25.0, "--timm-checkout", tmp_path)
    assert list(figures["ratio"]) == ["timm"]
    assert len(figures["rounds"]) == len(figures["peer"]["timm"]["rounds"]) == 2
    _, *turns = commands  # The first command gives the logits of the peer.
    assert [command[1] for command in turns] == [str(validate.ROOT / "validate.py"), str(tmp_path / "validate.py")] * 3
    ours, theirs = turns[:2]
    for name, other in (("--workers", "-j"), ("--batch-size", "-b"), ("--data", "--data-dir"), ("--split", "--split")):
        assert ours[ours.index(name) + 1] == theirs[theirs.index(other) + 1]


@pytest.mark.parametrize(("shift", "top1"), [(2e-4, 25.0), (0.0, 24.0)], ids=["logits", "top-1"])
def test_different_results_are_refused_before_a_turn(measure_without_networks: Measured, shift: float, top1: float):
    with pytest.raises(Failure, match="differ"):
        measure_without_networks(LOGITS + shift, top1)
    figures, _ = measure_without_networks(LOGITS + shift, top1, "--precision", "bf16")
    assert figures["logits_difference"] == pytest.approx(shift, abs=1e-6)
    assert figures["top1"] == top1
