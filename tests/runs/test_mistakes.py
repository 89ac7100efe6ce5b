"""A user's mistakes: one readable message, the right exit code, no traceback, nothing changed."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
from launcher import OWN_TORCHRUN, PYTHON
from run_folders import losses, status

pytestmark = pytest.mark.runs


SHORT = ("--set", "length=1st", "--set", "schedule.warmup=0ep")


@pytest.fixture(scope="module")
def one_step(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("one") / "run", *SHORT)


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


def test_another_number_of_classes(fails):
    fails(3, "--set", "model.num_classes=4", expect=["3 class folders", "model.num_classes=3"])


def test_broken_images_are_replaced_until_they_are_too_many(fails, images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    for number in (3, 5):
        (broken / "train" / "class_1" / f"{number}.jpg").write_bytes(b"")
    more = ("--data", str(broken), "--set", "data.on_error=substitute")
    result = fails(0, *more, expect=[], output=tmp_path / "replaced")
    for number in (3, 5):
        assert result.output.count(f"class_1/{number}.jpg is empty") == 1
    assert "(2 bad images of at most 100)" in result.output
    fails(3, *more, "--set", "data.max_bad_images=1", expect=["data.max_bad_images (1)"])


@pytest.mark.full
def test_our_torchrun_ends_as_its_workers(torchrun, train_arguments, tmp_path):
    """A missing folder gives one line without a rank, the exit code of data, and no line of torchrun."""
    arguments = train_arguments(tmp_path / "run", "--data", str(tmp_path / "nowhere"))
    result = torchrun(2, arguments, torchrun=OWN_TORCHRUN)
    assert result.returncode == 3, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_nothing(fails, tmp_path):
    result = fails(0, "--dry-run", expect=[])
    for text in ("parameters", "images/s", "peak memory", "estimated time"):
        assert text in result.stdout
    assert not (tmp_path / "run").exists()


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
    assert (result.returncode, result.output) == (130, "interrupted\n")


@pytest.mark.full
def test_never_is_heeded_by_each_launch_of_one_name(torchrun, train_arguments, tmp_path):
    """Launches on several machines have a name, often the same name again: that is no restart."""
    run = tmp_path / "run"
    named = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=100"]
    for number in range(2):
        result = torchrun(1, train_arguments(run, *SHORT, "--resume", "never"), launch=named)
        assert result.returncode == 0, result.output
        assert "nothing to do" not in result.stdout
        assert (run / "earlier-1" / "checkpoints" / "last.safetensors").exists() == (number == 1)
    assert len(losses(run)) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "train" / "class_1" / "new.jpg").hardlink_to(root / "train" / "class_1" / "0.jpg"),
         ["24 training images then, 25 now", "--allow-changed dataset"]),
        (lambda root: [(root / split / "class_1").rename(root / split / "fox") for split in ("train", "val")],
         ["gone: class_1; new: fox", "--allow-changed classes"]),
    ],
    ids=["one more", "another class"],
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
