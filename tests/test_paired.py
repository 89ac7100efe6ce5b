"""scripts/paired.py: the runs of a pair, and the table of differences."""

import json
import sys

import paired


def test_the_fork_has_the_settings_of_the_run_and_the_change(monkeypatch, tmp_path, capsys):
    """A stand-in for a run writes the checkpoints and the validations of a real run."""
    started = []

    def watch(label, command, threads):
        started.append([str(word) for word in command])
        seed, name = label.split("-")
        run = tmp_path / "out" / label
        (run / "checkpoints").mkdir(parents=True)
        for step in (4, 8):
            (run / "checkpoints" / f"step-{step:08}.safetensors").touch()
        rows = [
            {"event": "validate", "step": 8, "weights": weights, "top1": 90.0 + int(seed) + shift, "loss": 0.5}
            for weights, shift in (("model", 2.0 if name == "B" else 0.0), ("ema", 5.0))
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "status.json").write_text('{"state": "finished"}')

    monkeypatch.setattr(paired, "watch", watch)
    words = ["--data", "digits", "--output", tmp_path / "out", "--change", "optimizer.lr=0.5", "--seeds", 3]
    monkeypatch.setattr(sys, "argv", ["paired.py", *map(str, words)])
    paired.main()
    assert len(started) == 6
    first, second = started[:2]
    fork = str(tmp_path / "out" / "0-A" / "checkpoints" / "step-00000004.safetensors")
    shared = second[: second.index("--resume")]
    assert first == [*shared, "--output", str(tmp_path / "out" / "0-A")]
    assert second[len(shared) :] == [
        "--resume", fork, "--set", "optimizer.lr=0.5", "--allow-changed", "optimizer.lr",
        "--output", str(tmp_path / "out" / "0-B"),
    ]  # fmt: skip
    assert "runtime.seed=2" in started[4]
    output = capsys.readouterr().out
    assert "| top-1, points | paired | +2 | 0 | +2, +2, +2 |" in output
    assert "| top-1, points | unpaired | +2 | 1.73 | +3, +3, +0 |" in output
    paired.main()  # All runs are finished.
    assert len(started) == 6
