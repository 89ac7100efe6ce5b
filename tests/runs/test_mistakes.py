"""A user's mistakes: one readable message, the right exit code, no traceback, nothing changed."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from launcher import OWN_TORCHRUN, PYTHON
from run_folders import losses, status

pytestmark = [pytest.mark.runs, pytest.mark.narrow]


@pytest.fixture
def fails(run_command, train_arguments, tmp_path):
    """`fails(code, *arguments, expect=[...])`: training ends with this code and says these things."""

    def run(code, *more, expect, output=None):
        result = run_command([PYTHON, *train_arguments(output or tmp_path / "run", *more)])
        assert result.returncode == code, result.output
        for text in expect:
            assert text in result.stderr
        assert "Traceback" not in result.output
        return result

    return run


def test_wrong_arguments(run_command):
    result = run_command([sys.executable, "train.py", "--recip", "x"])
    assert result.returncode == 2
    assert "--recipe" in result.stderr
    assert "Traceback" not in result.output


def test_a_misspelt_key(fails):
    fails(2, "--set", "optimizer.learning=3", expect=["optimizer.learning"])


def test_a_global_batch_that_does_not_divide(fails):
    fails(2, "--set", "batch.global_size=10", expect=["batch.global_size", "10"])


def test_a_refused_start_ends_what_was_to_go_on(fails, tmp_path):
    """A job script that reads `status.json` must not queue the job again for a refused recipe."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text('{"state": "preempted", "step": 3}')
    mistake = ["--set", "optimizer.learning=3"]
    for more in (["--print-recipe"], ["--resum", "never"]):  # A look at the recipe, and options that cannot be parsed.
        fails(2, *mistake, *more, expect=[], output=run)
        assert status(run)["state"] == "preempted"
    fails(2, *mistake, expect=["optimizer.learning"], output=run)
    assert (status(run)["state"], status(run)["step"]) == ("failed", 3)
    assert "optimizer.learning" in status(run)["reason"]


def test_data_that_is_not_there(fails, tmp_path):
    fails(3, "--data", str(tmp_path / "nowhere"), expect=["nowhere"])


def test_another_number_of_classes(fails):
    fails(3, "--set", "model.num_classes=4", expect=["3 class folders", "model.num_classes=3"])


def test_a_broken_image_is_named(fails, images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    victim = broken / "train" / "class_1" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    fails(3, "--data", str(broken), expect=["class_1/3.jpg"])


def test_broken_images_are_replaced_until_they_are_too_many(fails, run_command, train_arguments, images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    for number in (3, 5):
        (broken / "train" / "class_1" / f"{number}.jpg").write_bytes(b"")
    more = ("--data", str(broken), "--set", "data.on_error=substitute")
    result = run_command([PYTHON, *train_arguments(tmp_path / "replaced", *more)])
    assert result.returncode == 0, result.output
    for number in (3, 5):
        assert result.output.count(f"class_1/{number}.jpg is empty") == 1
    assert "(2 bad images, at most 100 allowed)" in result.output
    fails(3, *more, "--set", "data.max_bad_images=1", expect=["data.max_bad_images (1)"])


def test_a_checkpoint_that_is_not_there(fails, tmp_path):
    fails(2, "--resume", str(tmp_path / "none.safetensors"), expect=["none.safetensors"])


def test_a_changed_recipe_is_refused_until_allowed(fails, run_command, train_arguments, module_train, tmp_path):
    run = module_train(tmp_path / "run", "--set", "length=1st", "--set", "schedule.warmup=0ep")
    short = ("--set", "length=1st", "--set", "schedule.warmup=0ep", "--set", "optimizer.lr=0.5")
    fails(2, *short, output=run, expect=["optimizer.lr: 0.002 -> 0.5", "--allow-changed optimizer.lr"])
    allowed = run_command([PYTHON, *train_arguments(run, *short, "--allow-changed", "optimizer.lr")])
    assert allowed.returncode == 0, allowed.output
    assert "optimizer.lr: 0.002 -> 0.5" in allowed.stdout


def test_losses_that_are_not_finite_stop_the_run(fails, tmp_path):
    settings = ("--set", "optimizer.lr=1e30", "--set", "optimizer.stop_after_skips=3")
    result = fails(1, *settings, expect=["is nan", "class_"], output=tmp_path / "run")
    assert "3 steps in a row were skipped" in result.stderr
    assert result.stdout.count("The step was skipped") == 3
    assert "micro-batch" in result.stderr
    assert status(tmp_path / "run")["state"] == "failed"


def test_under_torchrun_the_message_comes_once(torchrun, train_arguments, tmp_path):
    result = torchrun(2, train_arguments(tmp_path / "run", "--set", "model.num_classes=4"))
    assert result.returncode != 0
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert error.startswith("error: ")
    assert "3 class folders" in error
    # torchrun's box has the message instead of `<N/A>`.
    assert result.stderr.partition("Root Cause")[2].count("3 class folders") == 1


def test_our_torchrun_ends_as_its_workers(torchrun, train_arguments, tmp_path):
    """A missing folder gives one line without a rank, the exit code of data, and no line of torchrun."""
    arguments = train_arguments(tmp_path / "run", "--data", str(tmp_path / "nowhere"))
    result = torchrun(2, arguments, torchrun=OWN_TORCHRUN)
    assert result.returncode == 3, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_nothing(run_command, train_arguments, tmp_path):
    result = run_command([PYTHON, *train_arguments(tmp_path / "run", "--dry-run")])
    assert result.returncode == 0, result.output
    for text in ("parameters", "images/s", "peak memory", "estimated time"):
        assert text in result.stdout
    assert not (tmp_path / "run").exists()


def test_print_recipe_and_diff(run_command):
    shown = run_command([PYTHON, "train.py", "--recipe", "seresnext50", "--print-recipe"])
    assert shown.returncode == 0
    assert "# recipes/_base/imagenet.yaml:" in shown.stdout
    differing = run_command([PYTHON, "train.py", "--recipe", "seresnext50", "--diff", "seresnext101"])
    assert "model.name: seresnext50 -> seresnext101" in differing.stdout


def test_an_image_that_only_one_rank_reads_ends_the_others(run_world, train_arguments, images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    image = broken / "train" / "class_1" / "3.jpg"
    # The start does not notice a damaged Huffman table, but no decoder accepts the image.
    data, place = bytearray(image.read_bytes()), image.read_bytes().index(b"\xff\xc4")
    data[place + 5 : place + 21] = b"\xff" * 16
    image.write_bytes(data)
    run = tmp_path / "run"
    result = run_world(2, train_arguments(run, "--data", str(broken), "--set", "length=9st"), timeout=90)
    assert result.returncode != 0
    assert "class_1/3.jpg" in result.stderr
    assert status(run)["state"] == "failed"
    assert "class_1/3.jpg" in status(run)["reason"]


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--recipe", "seresnext26", "--data", "recipes", "--output"],
        pytest.param(["validate.py", "--checkpoint"], marks=pytest.mark.full),
    ],
    ids=["train", "validate"],
)
def test_ctrl_c_while_torch_is_imported(start_command, command, tmp_path):
    for _ in range(5):
        running = start_command([sys.executable, *command, tmp_path])
        running.wait_for(lambda running=running: b"torch" in Path(f"/proc/{running.process.pid}/maps").read_bytes())
        running.process.send_signal(signal.SIGINT)
        result = running.finish()
        if "error" not in result.stderr:  # On a busy machine, the command may end before the signal comes.
            break
    assert result.returncode == 130
    assert result.output == ""


def test_never_moves_a_run_only_once_the_new_one_can_start(fails, module_train, tmp_path):
    short = ("--set", "length=1st", "--set", "schedule.warmup=0ep")
    run = module_train(tmp_path / "run", *short)
    fails(3, *short, "--resume", "never", "--set", "model.num_classes=4", output=run, expect=["3 class folders"])
    assert (run / "metrics.jsonl").exists()
    assert not (run / "earlier-1").exists()
    module_train(run, *short, "--resume", "never")
    assert (run / "earlier-1" / "checkpoints" / "last.safetensors").exists()
    assert status(run)["state"] == "finished"


@pytest.mark.full
def test_never_is_heeded_by_each_launch_of_one_name(torchrun, train_arguments, tmp_path):
    """Launches on several machines have a name, often the same name again: that is no restart."""
    run = tmp_path / "run"
    named = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=100"]
    short = ("--set", "length=1st", "--set", "schedule.warmup=0ep", "--resume", "never")
    for number in range(2):
        result = torchrun(1, train_arguments(run, *short), launch=named)
        assert result.returncode == 0, result.output
        assert "nothing to do" not in result.stdout
        assert (run / "earlier-1" / "checkpoints" / "last.safetensors").exists() == (number == 1)
    assert len(losses(run)) == 1


@pytest.fixture(scope="module")
def one_step(module_train, tmp_path_factory):
    return module_train(tmp_path_factory.mktemp("one") / "run", *SHORT)


SHORT = ("--set", "length=1st", "--set", "schedule.warmup=0ep")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "train" / "class_1" / "new.jpg").hardlink_to(root / "train" / "class_1" / "0.jpg"),
         ["24 training images then, 25 now", "--allow-changed dataset"]),
        pytest.param(lambda root: (root / "train" / "class_1" / "3.jpg").rename(root / "train" / "class_1" / "x.jpg"),
         ["24 training images then, 24 now, or other names"], marks=pytest.mark.full),
        (lambda root: [(root / split / "class_1").rename(root / split / "fox") for split in ("train", "val")],
         ["gone: class_1; new: fox", "--allow-changed classes"]),
    ],
    ids=["one more", "another name", "another class"],
)  # fmt: skip
def test_data_that_changed_between_two_starts(fails, one_step, images, tmp_path, change, words):
    """The control is the copy without a change: the same data in another folder."""
    run = shutil.copytree(one_step, tmp_path / "run")
    copy = shutil.copytree(images, tmp_path / "images")
    data = ("--data", str(copy))
    if "25 now" in words[0]:
        fails(0, *SHORT, *data, expect=[], output=run)
    change(copy)
    fails(3, *SHORT, *data, expect=words, output=run)
    assert status(run)["state"] == "failed"
    assert words[0] in status(run)["reason"]
