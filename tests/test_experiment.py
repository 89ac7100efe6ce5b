"""scripts/experiment.py: the trainings, the figures from the printed lines, and the results file."""

import json
import sys

import experiment
import pytest
from run_folders import events

from seresnext.recipe.load import load_recipe

# The output of timm's train.py for two epochs. The mean of all batches, in parentheses, counts.
TIMM_SAYS = """
import sys, time
assert sys.argv[sys.argv.index("--lr") + 1] == "0.05"
print("Train: 0 [   0/78 (  1%)]  Loss: 2.41 (2.41)")
print("Test: [   0/15]  Time: 5.412 (5.412)  Loss:   2.3 ( 2.3)  Acc@1:   9.000 (  9.000)  Acc@5:  28.125 ( 28.125)")
print("Test: [  15/15]  Time: 1.8 (4.0)  Loss:   2.3 (2.3)  Acc@1:  50.000 ( 20.500)  Acc@5: 100.000 ( 70.100)")
time.sleep(0.3)
print("Test: [  15/15]  Time: 1.8 (4.0)  Loss:   2.3 (2.3)  Acc@1:  50.000 ( 30.000)  Acc@5: 100.000 ( 80.000)")
"""


@pytest.fixture
def run(monkeypatch, tiny_image_folder, tmp_path):
    """`run(*words) -> rows by name and seed`, with the small experiments `plain` and `best`."""
    small = ("model.num_classes=3", "data.image_size=32", "data.workers=0", "length=2ep")
    small += ("batch={global_size: 24, micro_size: 24}",)
    monkeypatch.setattr(experiment, "EXPERIMENTS", {"plain": (*small, "ema=null"), "best": small})

    def main(*words):
        arguments = ["--data", tiny_image_folder(), "--output", tmp_path / "out", "--threads", 1, *words]
        monkeypatch.setattr(sys, "argv", ["experiment.py", *map(str, arguments)])
        experiment.main()
        return {(row["name"], row["seed"]): row for row in json.loads((tmp_path / "out" / "results.json").read_text())}

    return main


@pytest.mark.runs
@pytest.mark.full
def test_trainings_beside_timms(run, tmp_path, capsys):
    (tmp_path / "timm.py").write_text(TIMM_SAYS)
    rows = run("plain", "best", "--timm", tmp_path / "timm.py", "--seeds", 3)
    assert list(rows) == [("timm", 3), ("plain", 3), ("best", 3)]
    timm = rows["timm", 3]["validations"]
    assert [(one["epoch"], one["top1"], one["top5"]) for one in timm] == [(1, 20.5, 70.1), (2, 30.0, 80.0)]
    assert timm[1]["seconds"] - timm[0]["seconds"] > 0.2
    for name, weights in (("plain", "model"), ("best", "ema")):
        row = rows[name, 3]
        logged = events(tmp_path / "out" / f"{name}-3", "validate")
        top1 = [one["top1"] for one in logged if one["weights"] == weights]
        assert [one["top1"] for one in row["validations"]] == top1
        assert [one["epoch"] for one in row["validations"]] == [1, 2]
        assert 0 < row["validations"][0]["seconds"] < row["validations"][1]["seconds"] < row["seconds"]
        assert "runtime.seed=3" in row["command"]
    assert "| timm | 3 | 30.0 | 80.0 |" in capsys.readouterr().out
    assert run("plain", "--seeds", 3)["plain", 3] == rows["plain", 3]  # A finished training is not repeated.


def test_all_experiments_are_recipes_and_plain_is_timms():
    recipes = {name: load_recipe("cifar10", list(settings)).recipe for name, settings in experiment.EXPERIMENTS.items()}
    plain, words = recipes["plain"], experiment.TIMM.split()
    told = {word: words[number + 1] for number, word in enumerate(words) if word.startswith("--")}
    assert float(told["--lr"]) == plain.optimizer.lr
    assert float(told["--weight-decay"]) == plain.optimizer.weight_decay
    assert float(told["--smoothing"]) == plain.loss.label_smoothing
    assert (int(told["--batch-size"]), f"{told['--epochs']}ep") == (plain.batch.global_size, str(plain.length))
    assert (plain.augment.crop_scale, plain.ema) == ((0.35, 1.0), None)
