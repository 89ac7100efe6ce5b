"""The command `doctor`, from the folder to the page in a browser, the JSON file and the list of exclusions."""

import csv
import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import small_digits
import torch
from browser import needs_chromium, open_browser
from conftest import command
from faulty_photos import jpeg, photograph
from photographs import make
from PIL import Image

from seresnext.data.decode.pillow import Decoding
from seresnext.data.formats import open_reader
from seresnext.data.readers import Reader
from seresnext.data.readers.photo_choice import photo_choice
from seresnext.doctor import examine, network
from seresnext.doctor import examine as module
from seresnext.doctor.examine import PICTURES, ROWS, count_classes, open_splits, render
from seresnext.doctor.findings import Finding, find_unreadable
from seresnext.doctor.images import Collection
from seresnext.doctor.network import Networks
from seresnext.errors import DataError
from seresnext.models import registry
from seresnext.recipe.load import load_recipe


def read_list(path):
    """Return path and reason of the images in an exclusion list."""
    with path.open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def test_the_files_of_a_quick_examination(faulty, tmp_path, capsys, monkeypatch):
    before = sorted((path, path.stat().st_mtime_ns) for path in faulty.rglob("*"))
    monkeypatch.setattr(network, "train", None)
    assert command("doctor", faulty, "--quick", "--output", tmp_path / "out") == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in faulty.rglob("*")) == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "findings.json", "exclude.csv"}
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    rows = {each["key"]: each["rows"] for each in found["findings"]}
    assert {key: sorted(row["path"] for row in rows[key]) for key in rows} == {
        "unreadable": ["train/a/broken.jpg", "train/a/text.jpg"],
        "contradiction": ["train/a/2.jpg", "train/b/clash.jpg"],
        "leak": ["train/a/leak.jpg"],
        "copy": ["train/a/equal.jpg"],
        **{kind: [f"train/a/{kind}.jpg"] for kind in ("near", "odd", "small", "empty", "dark", "bright", "blurred")},
    }
    assert rows["leak"][0]["other"] == "val/a/0.jpg"
    assert found["sizes"] == {"smallest": [15, 15], "median": [64, 64], "largest": [90, 90]}
    assert [(row["class"], row["train"], row["val"]) for row in found["classes"]] == [("a", 23, 4), ("b", 13, 4)]
    listed = read_list(tmp_path / "out" / "exclude.csv")
    in_list = ("unreadable", "contradiction", "leak", "copy")
    assert listed == {row["path"]: key for key in in_list for row in rows[key]}
    assert found["num_listed"] == 6
    output = capsys.readouterr().out
    assert "44 images of 2 classes: 36 of train, 8 of val" in output
    assert f"6 images are in {tmp_path}/out/exclude.csv" in output
    # A run leaves out the images of the list.
    recipe = load_recipe("finetune", [f"data.root={faulty}", f"data.exclude={tmp_path}/out/exclude.csv"]).recipe
    reader = open_reader(faulty, "train", choice=photo_choice(recipe, {}))
    names = {*map(reader.name, range(len(reader)))}
    assert names == {str(path.relative_to(faulty)) for path in (faulty / "train").rglob("*.jpg")} - listed.keys()


def test_an_image_that_is_lost_before_the_page_costs_no_findings(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "decode", Mock(side_effect=DataError("train/a/0.jpg is gone; restore the file")))
    assert command("doctor", faulty, "--quick", "--output", tmp_path / "out") == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"findings.json", "exclude.csv"}


@pytest.mark.full
def test_suspected_labels_of_short_trainings(tiny_image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "create_model", small_digits.small)
    monkeypatch.setattr(network, "_FEWEST_STEPS", 50)
    root = shutil.copytree(tiny_image_folder(3, 20), tmp_path / "photos")
    (root / "train" / "class_0" / "3.jpg").rename(root / "train" / "class_1" / "wrong.jpg")
    (root / "val" / "class_2" / "1.jpg").rename(root / "val" / "class_0" / "wrong.jpg")
    assert command("doctor", root, "--folds", 3, "--image-size", 32, "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    labels = {row["path"]: row for each in found["findings"] for row in each["rows"] if each["key"] == "label"}
    assert labels["train/class_1/wrong.jpg"]["suggestion"] == "class_0"
    assert labels["val/class_0/wrong.jpg"]["suggestion"] == "class_2"
    listed = read_list(tmp_path / "out" / "exclude.csv")
    assert listed["train/class_1/wrong.jpg"] == "label"
    assert "val/class_0/wrong.jpg" not in listed
    assert len(listed) <= 3
    assert found["method"][0].startswith("3 short trainings from random weights.")


def test_photographs_without_splits_are_divided_as_by_finetune(tmp_path):
    root = make(tmp_path / "photos", *(f"{'ab'[number % 2]}/{number}.jpg" for number in range(20)))
    (root / "a" / "bad.jpg").write_text("bad")
    readers = open_splits(str(root))
    recipe = load_recipe("finetune", [f"data.root={root}"]).recipe
    for split in ("train", "val"):
        run = open_reader(root, split, choice=photo_choice(recipe, {}))
        assert run.fingerprint == readers[split].fingerprint
    assert command("doctor", root, "--quick", "--output", tmp_path / "out") == 0
    unreadable = json.loads((tmp_path / "out" / "findings.json").read_text())["findings"][0]
    details = [row["detail"] for row in unreadable["rows"]]
    assert (unreadable["key"], details) == ("unreadable", ["a/bad.jpg is a text, no image"])


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["none"], 3, "there is no folder none"),
        (["photos", "--quick", "--folds", "3"], 2, "--quick"),
        (["photos", "--folds", "1"], 2, "whole number from 2 to 20"),
        (["photos", "--quick", "--output", "photos/out"], 2, "lies among the images"),
        (["photos", "--quick", "--output", "taken"], 2, "taken/index.html cannot be written"),
        (["photos", "--quick", "--output", "full"], 2, "full/exclude.csv"),
        (["photos", "--checkpoint", "none.pth"], 4, "none.pth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(faulty, tmp_path, monkeypatch, capsys, words, code, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(faulty)
    (tmp_path / "taken").write_text("")
    (tmp_path / "full" / "exclude.csv").mkdir(parents=True)
    assert command("doctor", *words) == code
    assert named in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "photos", "taken"]
    assert not (faulty / "out").exists()


def test_without_the_extra_nothing_begins(faulty, tmp_path, capsys, without):
    without("imagehash")
    assert command("doctor", faulty, "--output", tmp_path / "out") == 2
    assert 'pip install "seresnext[report]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", ["look_at", "cross_validate"])
def test_nothing_is_written_after_ctrl_c(faulty, tmp_path, moment, monkeypatch, capsys):
    monkeypatch.setattr(examine, moment, Mock(side_effect=KeyboardInterrupt))
    assert command("doctor", faulty, "--output", tmp_path / "out") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_test_folder_is_compared_and_empty_images_are_no_copies(tmp_path):
    root = make(
        tmp_path / "photos", "train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg", "val/b/0.jpg", "test/a/1.jpg=1000"
    )
    ramp = np.tile(np.linspace(100, 108, 64), (64, 1))
    for n in range(2):
        Image.fromarray((ramp + n).astype(np.uint8)).save(root / f"train/b/empty{n}.jpg")
    assert command("doctor", root, "--quick", "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    rows = {each["key"]: each["rows"] for each in found["findings"]}
    assert [row["path"] for row in rows["leak"]] == ["train/a/0.jpg"]
    assert (len(rows["empty"]), len(rows["near"])) == (2, 0)
    assert [(row["test"], row["listed"]) for row in found["classes"]] == [(1, 1), (0, 0)]


def test_all_copies_are_told_to_the_folds(faulty, monkeypatch):
    groups = {}

    def judge(reader, copies, _):
        groups.update(zip(map(reader.name, range(len(reader))), copies.tolist(), strict=True))
        return np.full((len(reader), 2), 0.5, np.float32), np.ones(len(reader))

    monkeypatch.setattr(examine, "cross_validate", judge)
    examine.examine(str(faulty), Networks(torch.device("cpu")))
    pairs = {"train/a/0": "train/a/equal", "train/a/1": "train/a/near", "val/a/0": "train/a/leak"}
    pairs["train/a/2"] = "train/b/clash"
    for one, other in pairs.items():
        assert groups[f"{one}.jpg"] == groups[f"{other}.jpg"]
    assert len({*groups.values()}) == len(groups) - len(pairs)


@pytest.mark.parametrize("knows", [True, False])
def test_labels_are_not_listed_by_a_network_that_knows_them(tiny_image_folder, knows, monkeypatch):
    root = tiny_image_folder()
    fingerprint = open_reader(root, "train").fingerprint if knows else "0" * 64
    weights = SimpleNamespace(source="FILE", metadata=SimpleNamespace(dataset={"fingerprint": fingerprint}))
    monkeypatch.setattr(examine, "check_known", lambda *_: None)
    monkeypatch.setattr(Networks, "decoding", Decoding(10**6))

    def answer(reader, *_):
        found = np.eye(3, dtype=np.float32)[reader.labels] * 0.85 + 0.05
        found[0] = found[-1]  # An image of class 0 looks like class 2.
        return found + 0.01 * (found == found[0]), np.ones(len(reader))

    monkeypatch.setattr(examine, "ask", answer)
    result, exclusions, _ = examine.examine(str(root), Networks(torch.device("cpu"), weights, folds=0))
    [row] = result["findings"][0]["rows"]
    assert (row["path"], row["suggestion"]) == ("train/class_0/0.jpg", "class_2")
    assert [each["path"] for each in exclusions] == [row["path"]] * (not knows)
    assert ("knows their labels" in result["method"][1]) == knows


def test_networks_are_left_out_where_there_is_nothing_to_learn(tmp_path):
    """One class, and fewer images than folds."""
    root = make(tmp_path / "photos", *(f"{('train', 'val')[number % 2]}/a/{number}.jpg" for number in range(6)))
    assert command("doctor", root, "--output", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert (found["method"], found["pairs"]) == ([], [])


def test_copies_leave_too_few_images_for_trainings(tmp_path, capsys):
    root = make(tmp_path / "photos", *(f"{split}/{name}/0.jpg=1" for split in ("train", "val") for name in "abc"))
    assert command("doctor", root, "--output", tmp_path / "out") == 3
    assert "too few images; use --quick" in capsys.readouterr().err


def test_one_good_image_has_no_neighbours(tmp_path, monkeypatch):
    make(tmp_path, "train/a/1.jpg", "val/b/1.jpg")
    (tmp_path / "val" / "b" / "1.jpg").write_bytes(jpeg(photograph(1))[:-500])
    monkeypatch.setattr(examine, "check_known", lambda *_: None)
    monkeypatch.setattr(Networks, "decoding", Decoding(10**6))
    weights = SimpleNamespace(source="FILE", metadata=None)
    result, _, _ = examine.examine(str(tmp_path), Networks(torch.device("cpu"), weights, folds=0))
    assert (result["method"], result["findings"][0]["key"]) == ([], "unreadable")


HOSTILE = ["<script>window.hit = 1</script>", '"><img src=x onerror="window.hit = 1">', "{{ 7 * 7 }}", "\u202eb\x1b[1m"]


class Strangers(Reader):
    """Images with hostile classes and names."""

    classes, fingerprint, notices = tuple(sorted(HOSTILE)), "", (HOSTILE[0],)
    labels = np.arange(40) % 4
    left_out = (HOSTILE[1],)

    def read(self, index):
        return jpeg(photograph(index, 30))

    def name(self, index):
        return f"{HOSTILE[index % 4]}/{index}"


def page_of(rows=40):
    """Return the page of an examination in which each image has a finding."""
    images = Collection({"train": Strangers()})
    all_rows = [images.row(n % 40, HOSTILE[n % 4], (n + 1) % 40, HOSTILE[(n + 1) % 4], True) for n in range(rows)]
    findings = [Finding("label", "Labels", "A rule.", all_rows), find_unreadable(images, {})]
    result = {
        "data": HOSTILE[0],
        "num_images": len(images),
        "num_listed": 40,
        "method": [HOSTILE[2]],
        "pairs": [(HOSTILE[0], HOSTILE[1], 0.4)],
        "notices": images.notices,
        "classes": count_classes(images, []),
        "sizes": {"smallest": (1, 1), "median": (2, 2), "largest": (3, 3)},
        "findings": [each._asdict() for each in findings],
    }
    return render(result, images, Decoding(10**6))


def test_thumbnails_and_rows_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "CLASSES", 3)
    page = page_of(2000)
    assert page.isascii()
    assert page.count("data:image/jpeg") == 2 * PICTURES
    assert page.count("<tr>") == 2 + 3 + ROWS  # The headers, the classes, the file that the reader left out.
    assert "The first 500 of 2,000" in page
    assert len(page) < 2_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@needs_chromium
@pytest.mark.full
@pytest.mark.parametrize(
    ("width", "scheme", "script"), [(400, "dark", True), (1280, "light", True), (400, "light", False)]
)
def test_the_page_in_a_browser(browser, tmp_path, width, scheme, script):
    path = tmp_path / "index.html"
    path.write_text(page_of(), "ascii")
    page = browser.open(path, width=width, scheme=scheme, script=script)
    assert (page.errors, len(page.requests)) == ([], 1)
    found = page.evaluate("[window.hit, document.scripts.length, document.querySelectorAll('img[src=x]').length]")
    assert found == [None, 1, 0]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 27)"
    assert dark == (scheme == "dark")
    shown = page.evaluate("[...document.querySelectorAll('#class-rows tbody th')].map(e => e.textContent)")
    assert sorted(shown) == sorted([*HOSTILE[:3], "\\u202eb\\x1b[1m"])
    links = page.evaluate("[...document.querySelectorAll('dl a')].every(a => document.querySelector(a.hash))")
    assert links
    if script:
        page.evaluate("document.querySelector('#class-rows thead button').focus()")
        page.press("Enter")
        assert page.evaluate("document.querySelector('#class-rows [aria-sort]') !== null")
