"""The command as a user runs it: the table, the JSON and the exit codes; disk, time and price of a run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from seresnext import cli
from seresnext.check import checking, devices
from seresnext.check import data as data_checks
from seresnext.check.checking import check_disk, judge_space, judge_time, judge_writes, measure_writes, step_seconds
from seresnext.check.devices import Speeds
from seresnext.check.findings import SECTIONS
from seresnext.checkpoint import store
from seresnext.errors import DataError
from seresnext.process.signals import StopRequest
from seresnext.recipe.load import load_recipe
from seresnext.run.dry_run import Spread
from seresnext.training.plan import build_plan

from .conftest import SMALL


@pytest.fixture
def run(small, tmp_path, capsys, monkeypatch) -> Callable[..., tuple[int, dict, str]]:
    """`run(*words) -> exit code, JSON, output` of `seresnext check`. Steps and loader have fixed figures."""
    speeds = devices.Speeds(Spread(1.0, 1.0, 1.0), 1000, Spread(9000.0, 9000.0, 9000.0))
    monkeypatch.setattr(checking, "check_devices", lambda *_: ([checking.judge("devices", "memory", "enough")], speeds))

    def check(*words: object) -> tuple[int, dict, str]:
        file = tmp_path / "found.json"
        file.unlink(missing_ok=True)
        settings = [word for setting in SMALL for word in ("--set", setting)]
        named = ["--recipe", "seresnext26", *settings, "--output", tmp_path / "run", "--json", file, "--device", "cpu"]
        code = cli.main(["check", *map(str, [*named, *words])], StopRequest())
        output = capsys.readouterr()
        return code, json.loads(file.read_text()), output.out + output.err

    return check


@pytest.fixture
def images(tiny_image_folder, tmp_path) -> Path:
    """Two splits that a test may change."""
    return shutil.copytree(tiny_image_folder(), tmp_path / "images")


def verdicts(found: dict) -> dict[str, str]:
    return {f"{each['section']}: {each['name']}": each["verdict"] for each in found["findings"]}


def test_a_good_run(run, images):
    code, found, output = run("--data", images, "--price", "7.2", "--set", "optimizer.lr=0.003")
    assert (code, found["exit_code"], found["failure"], found["warning"]) == (0, 0, 0, 1)
    assert [line for line in output.splitlines() if not line.startswith(" ")][:-1] == list(SECTIONS)
    assert output.splitlines()[-1].startswith(f"0 failure, 1 warning, {found['ok']} ok, in ")
    assert found["findings"][-1]["values"]["price"] == pytest.approx(0.07)  # 30 steps of 1 s, 10 validations.
    assert verdicts(found)["recipe: BatchNorm"] == "warning"  # Micro-batches of 4 images.
    assert max(map(len, output.splitlines())) <= 100
    assert not (images.parent / "run").exists()


def test_warnings_fail_if_the_user_wants_it(run, images):
    code, found, output = run("--data", images, "--set", "optimizer.lr=0.003", "--strict")
    assert (code, found["exit_code"]) == (2, 2)
    assert "the check found 1 problem (recipe: BatchNorm)" in output


def test_all_images_are_decoded_if_the_user_wants_it(run, images, monkeypatch):
    monkeypatch.setitem(data_checks._SAMPLE, "training", 5)
    rows = [{each["name"]: each for each in run("--data", images, *words)[1]["findings"]} for words in ([], ["--full"])]
    assert [row["training images"]["values"]["seen"] for row in rows] == [5, 24]


def test_ranks_that_see_other_images_are_a_failure(run, images, monkeypatch):
    error = DataError("rank 1 on two see other images; give all machines the same data")
    monkeypatch.setattr(checking.pipeline, "check_same_data", Mock(side_effect=error))
    code, found, _ = run("--data", images)
    assert (code, verdicts(found)["data: start"]) == (3, "failure")
    assert "training images" not in str(found["findings"])  # No reader is left.


def test_without_data_the_rest_is_checked(run):
    code, found, _ = run(
        "--set", "data.root=recipes", "--set", "data.format=synthetic", "--set", "data.synthetic_images=9"
    )
    assert (code, verdicts(found)["data: images"]) == (0, "ok")
    code, found, _ = run()
    assert code == 0
    assert "not checked: no --data" in found["findings"][0]["measured"]
    shards = ("data.format=shards", "data.shuffle_shards=9")
    assert run(*(word for setting in shards for word in ("--set", setting)))[0] == 0
    assert "1,601,450 steps" in found["findings"][-1]["measured"]  # 10 epochs of 1,281,167 images, by 8.


BAD = {
    "class": (lambda root: shutil.rmtree(root / "val" / "class_1"), "data: start", "failure", 3),
    "file": (lambda root: (root / "train/class_1/1.jpg").write_bytes(b"x"), "data: training files", "failure", 3),
    "copy": (
        lambda root: shutil.copy(root / "train" / "class_1" / "1.jpg", root / "val" / "class_1" / "copy.jpg"),
        "data: train in val", "failure", 3,
    ),
    "text": (lambda root: (root / "train" / "class_1" / "list.txt").write_text("x"), "data: files", "warning", 0),
    "split": (lambda root: shutil.rmtree(root / "val"), "data: start", "failure", 3),
    "few": (lambda root: [path.unlink() for path in root.glob("train/*/[1-7].jpg")], "data: start", "failure", 3),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_found(run, images, case):
    spoil, name, verdict, expected = BAD[case]
    before = verdicts(run("--data", images)[1])
    spoil(images)
    code, found, output = run("--data", images)
    assert (code, found["exit_code"]) == (expected, expected)
    assert verdicts(found)[name] == verdict
    assert before.get(name, "ok") == "ok"
    assert "Traceback" not in output
    assert all(each["fix"] for each in found["findings"] if each["verdict"] != "ok")


def test_a_single_class_and_a_wrong_number_of_classes(run, images):
    code, found, output = run("--data", images, "--set", "model.num_classes=4")
    assert (code, verdicts(found)["data: start"]) == (3, "failure")
    assert "model.num_classes=3" in output
    for path in images.glob("*/class_[12]"):
        shutil.rmtree(path)
    assert "a classifier needs two classes" in run("--data", images)[2]


def test_a_recipe_that_cannot_start_has_exit_code_2(run, images):
    late = "data.progressive={min_size: 16, start_ramp: 9st, end_ramp: 1ep}"  # An epoch has 3 steps.
    missing, data = "model.weights=nowhere.pth", ["--data", images]
    for setting, words, text in ((missing, [], "nowhere"), (missing, data, "nowhere"), (late, data, "end_ramp")):
        code, found, output = run(*words, "--set", setting)
        assert (code, verdicts(found)["recipe: start"]) == (2, "failure")
        assert text in output
    assert run(*data)[0] == run("--set", late)[0] == 0


def test_the_first_failure_gives_the_code(run, images, monkeypatch):
    shutil.rmtree(images / "val" / "class_1")
    assert run("--data", images, "--set", "model.weights=nowhere.pth")[0] == 3
    monkeypatch.setattr(checking.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    code, found, _ = run()
    assert (code, verdicts(found)["disk: space"]) == (1, "failure")
    memory = checking.judge("devices", "memory", "too much", "halve it", verdict="failure")
    monkeypatch.setattr(checking, "check_devices", lambda *_: ([memory], None))
    assert run()[0] == 2


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--price", "-1"], 2, "--price"),
        (["--data", "nowhere"], 3, "no folder nowhere"),
        (["--json", f"{__file__}/x"], 2, "cannot be written"),
        (["--set", "checkpoint.mirror=s4://x"], 2, "give s3://..., gs://... or a folder"),
    ],
)
def test_mistakes_of_the_command_line(capsys, words, code, text):
    assert cli.main(["check", "--recipe", "seresnext26", *words], StopRequest()) == code
    assert text in capsys.readouterr().err


@pytest.mark.full
def test_two_ranks_share_the_work(run_world, images, tmp_path):
    """The real measurements of a small network."""
    (images / "train" / "class_1" / "1.jpg").write_bytes(b"x")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    words = ["--recipe", "seresnext26", *settings, "--data", images, "--json", tmp_path / "found.json"]
    result = run_world(2, ["tests/small_digits.py", "check", *words, "--output", tmp_path / "run"])
    assert result.returncode != 0, result.output
    assert result.stdout.count("training files") == 1
    assert result.stderr.count("the check found") == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["exit_code"], found["world_size"], found["findings"][2]["values"]) == (3, 2, {"seen": 24, "bad": 1})
    values = {each["name"]: each["values"] for each in found["findings"]}
    assert abs(values["clocks"]["offsets"][1]) < values["clocks"]["within"] + 0.05  # Both ranks have one clock.
    assert values["all-reduce"]["seconds"] > 0
    assert "writing" in values
    assert found["seconds"] < 120


STEP = Spread(2.0, 1.5, 3.0)


def planned(*settings, steps_per_epoch=10):
    recipe = load_recipe("seresnext50", ["length=20ep", *settings]).recipe
    return recipe, build_plan(recipe, steps_per_epoch)


@pytest.mark.parametrize(
    "settings",
    [(), ["checkpoint.keep=1"], ["checkpoint.keep_every=5ep"], ["length=2ep"],
     ["evaluation.every=3ep", "checkpoint.every=9ep"]],
)  # fmt: skip
def test_the_number_of_checkpoints_is_that_of_a_run(settings, tmp_path):
    """The oracle saves empty files as a planned does, and counts the most files. `best` is the first file."""
    recipe, plan = planned(*settings)
    most = 0
    for step in range(1, plan.total + 1):
        if plan.is_due(plan.save_every, step) or plan.is_due(plan.evaluate_every, step):
            (tmp_path / f"step-{step:08d}.safetensors").touch()
            most = max(most, len(store.steps(tmp_path)) + 1)
            store.prune(tmp_path, recipe.checkpoint.keep, plan.keep_every)
    every = min(plan.save_every, plan.evaluate_every, plan.total)
    needed = judge_space(recipe, plan, every, 1, 10**9, tmp_path).values["needed_bytes"]
    assert most <= needed <= most + 2


@pytest.mark.parametrize(
    ("free", "verdict"), [(1001, "ok"), (1000, "ok"), (999, "warning"), (500, "warning"), (499, "failure")]
)
def test_free_space(free, verdict, tmp_path):
    recipe, plan = planned()
    finding = judge_space(recipe, plan, plan.save_every, 100, free, tmp_path)  # Five checkpoints of 100 bytes.
    assert (finding.verdict, finding.values["needed_bytes"]) == (verdict, 500)
    assert ("--output" in finding.fix) == (verdict != "ok")


def test_writes_are_synced_and_leave_nothing(small, tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number) or fsync(number))
    rate = measure_writes(tmp_path)
    assert len(synced) == 5
    assert 0 < rate.low <= rate.median <= rate.high
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_yet_and_one_that_cannot_be_written(small, tmp_path, monkeypatch):
    recipe, plan = planned()
    speeds = Speeds(STEP, 1000)
    found = check_disk(recipe, plan, speeds, tmp_path / "runs" / "new")
    assert [(finding.name, finding.verdict) for finding in found] == [("space", "ok"), ("writing", "ok")]
    assert str(tmp_path) in found[0].measured
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (finding,) = check_disk(recipe, plan, speeds, tmp_path / "file" / "planned")
    assert (finding.verdict, "Not a directory" in finding.measured) == ("failure", True)
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=OSError(30, "Read-only file system")))
    (finding,) = check_disk(recipe, plan, speeds, tmp_path)
    assert (finding.verdict, "Read-only" in finding.measured) == ("failure", True)


@pytest.mark.parametrize(("interval", "verdict"), [(10.1, "ok"), (9.9, "warning")])
def test_a_checkpoint_that_takes_longer_than_the_interval(interval, verdict):
    finding = judge_writes(Spread(1e8, 1e8, 1e8), 10**9, interval)
    assert finding.verdict == verdict
    assert "100 MB/s with fsync: 10 s a checkpoint" in finding.measured


def test_the_slower_of_step_and_loader_gives_the_pace():
    _, plan = planned()
    assert step_seconds(plan, Speeds(STEP, 0)) == STEP
    assert step_seconds(plan, Speeds(STEP, 0, loader=Spread(4096.0, 2048.0, 8192.0))) == STEP
    assert step_seconds(plan, Speeds(STEP, 0, loader=Spread(256.0, 128.0, 1024.0))) == (4.0, 1.5, 8.0)


def test_time_and_price_of_a_run():
    """200 steps of 2 s; 20 validations of 1,536 images, at three times the images/s of a step: 1 s."""
    _, plan = planned()
    finding = judge_time(plan, Speeds(STEP, 0), num_val=1536, price=36.0)
    assert finding.values["median"] == pytest.approx(200 * 2 + 20)
    assert finding.values["high"] == pytest.approx(200 * 3 + 20)
    assert finding.values["price"] == pytest.approx(4.2)
    assert finding.measured.startswith("0:07:00 (0:05:20 to 0:10:20): 200 steps of 2 s")
    assert finding.measured.endswith("price 4.20 (3.20 to 6.20), at 36 an hour")
    assert "price" not in judge_time(plan, Speeds(STEP, 0), 1536, None).measured
    bound = Speeds(STEP, 0, loader=Spread(512.0, 512.0, 512.0))
    assert judge_time(plan, bound, 1536, None).values["median"] == pytest.approx(200 * 2 + 20 * 3)
