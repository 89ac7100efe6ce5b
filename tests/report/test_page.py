"""The report: the page in a browser, the commands that write the page, and Grad-CAM against the formula."""

import json
from unittest.mock import Mock

import jinja2
import numpy as np
import pytest
import torch
from bad_checkpoints import metadata_values, model_weights, write_checkpoint
from browser import needs_chromium, open_browser
from conftest import command
from PIL import Image
from safetensors.torch import save_file

from seresnext.errors import DataError
from seresnext.evaluation.evaluate import Evaluation, count_classes
from seresnext.evaluation.summary import summarize
from seresnext.metrics import tracker
from seresnext.models import create_model
from seresnext.report import page as module
from seresnext.report.page import NO_PICTURES, PAIRS, PICTURES, choose_stage, grad_cam, overlay, render

HOSTILE = [
    "<script>window.hit = 1</script>",
    '"><img src=x onerror="window.hit = 1">',
    "</style></title></script><script>window.hit = 1</script>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt;",
    "' onfocus='window.hit = 1' autofocus='",
    "\u202egpj.\x1b[31m caf\u00e9 \U0001f600",
]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def picture_of(name, label, prediction, heat=PIXEL, is_small=False):
    texts = {"name": name, "label": label, "prediction": prediction, "image": PIXEL, "heat": heat}
    return {**texts, "confidence": 97.5, "is_small": is_small}


def content(classes, images=300, **changes):
    """Return the arguments of `render` for a report on random logits."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % len(classes)
    logits = rng.normal(size=(images, len(classes))).astype(np.float32)
    logits[np.arange(images), labels] += rng.uniform(0, 4, len(classes))[labels]
    top1 = 100 * float((logits.argmax(1) == labels).mean())
    counts = count_classes(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    result = Evaluation({"top1": top1, "top5": 99.0, "loss": 0.5}, images, 10.0, counts, logits, labels)
    values = {**result.to_dict(), "model": "seresnext26", "weights": "ema", **summarize(result, classes)}
    name, other = classes[:2]
    picture = picture_of(f"val/{name}.jpg", name, other, is_small=True)
    empty = {"curves": {}, "data": (), "notes": (), "recipe": None, "environment": ()}
    pictures = {"mistakes": [picture], "uncertain": [picture], "stage": "layer4"}
    return {"result": values, "source": "data/val", **empty, "pictures": pictures, **changes}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def show(browser, tmp_path):
    """`show(content, width=1280, ...)` returns the page in the browser."""

    def show(content, **options):
        path = tmp_path / "index.html"
        path.write_text(render(**content), "ascii")
        return browser.open(path, **options)

    return show


def texts(page, table, column, shown=True):
    """Return the texts of a column of a table, without hidden rows."""
    rows = f"[...document.querySelector('#{table}').tBodies[0].rows]"
    return page.evaluate(
        f"{rows}.filter(row => !row.hidden || !{json.dumps(shown)}).map(r => r.cells[{column}].innerText)"
    )


@needs_chromium
def test_names_of_strangers_are_text(show):
    recipe, environment = "name: </pre><script>window.hit = 1</script>", [(HOSTILE[0], HOSTILE[1])]
    page = show(content(HOSTILE, recipe=recipe, environment=environment))
    assert page.errors == []
    found = page.evaluate("[window.hit, document.scripts.length, document.querySelectorAll('img[src=x]').length]")
    assert found == [None, 1, 0]
    assert page.evaluate("document.querySelector('pre').innerText") == recipe
    shown = [*HOSTILE[:-1], "\\u202egpj.\\x1b[31m caf\u00e9 \U0001f600"]
    assert sorted(page.evaluate("[...document.querySelectorAll('#class-rows tbody th')].map(e => e.textContent)")) == (
        sorted(shown)
    )


@needs_chromium
def test_without_escapes_the_policy_of_the_page_stops_scripts(show, monkeypatch):
    """The control of the test above: the same names become elements. The second guard refuses to run them."""
    environment = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **options: environment(**{**options, "autoescape": False}))
    page = show(content([*HOSTILE[:2], "c"]))
    assert page.evaluate("document.scripts.length") > 1
    assert page.evaluate("window.hit") is None
    assert "Content Security Policy" in "".join(page.errors)


@needs_chromium
def test_tables_are_sorted_by_click_and_by_keyboard(show):
    page = show(content([f"class {number}" for number in range(12)]))
    recall = [float(text) for text in texts(page, "class-rows", 2)]
    assert recall == sorted(recall)  # The weakest class is first.
    page.evaluate("document.querySelectorAll('#class-rows thead button')[2].click()")
    assert [float(text) for text in texts(page, "class-rows", 2)] == sorted(recall, reverse=True)
    page.evaluate("document.getElementById('search').focus()")
    for _ in range(2):  # The box of the table, which scrolls, and the first header.
        page.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    assert texts(page, "class-rows", 0) == [f"class {number}" for number in range(12)]  # Not 0, 1, 10, 11, 2.
    page.press(" ")
    assert texts(page, "class-rows", 0)[0] == "class 11"
    sorts = page.evaluate("[...document.querySelectorAll('#class-rows [aria-sort]')].map(e => e.ariaSort)")
    assert sorts == ["descending"]
    assert (page.errors, len(page.requests)) == ([], 1)


@needs_chromium
def test_search_and_filter(show):
    page = show(content(["Tench", "goldfish", "tiger shark", "hen"]))
    page.evaluate("document.getElementById('search').focus()")
    page.type(" T")
    assert sorted(texts(page, "class-rows", 0)) == ["Tench", "tiger shark"]
    assert page.evaluate("document.querySelector('output[for=search]').value") == "2 of 4 classes"
    pairs = list(zip(texts(page, "pair-rows", 0), texts(page, "pair-rows", 1), strict=True))
    select = "document.getElementById('filter')"
    page.evaluate(f"{select}.value = 'hen'; {select}.dispatchEvent(new Event('change'))")
    found = list(zip(texts(page, "pair-rows", 0), texts(page, "pair-rows", 1), strict=True))
    assert found == [pair for pair in pairs if "hen" in pair] != pairs
    assert page.errors == []


@needs_chromium
def test_an_evaluation_of_imagenet_opens_within_two_seconds(show):
    classes = [f"n{number:08}" for number in range(1000)]
    rng = np.random.default_rng(0)
    per_class = [
        {"class": name, "precision": 80.0, "recall": float(rng.uniform(40, 100)), "f1": 80.0, "support": 50}
        for name in classes
    ]
    pairs = [[classes[n % 1000], classes[(7 * n + 1) % 1000], 20] for n in range(20_000)]
    image = "data:image/jpeg;base64," + "A" * 6000  # Noise of 96 pixels has 6,000 characters.
    pictures = [picture_of(f"val/{n}.JPEG", classes[n], classes[n + 1], heat=image) for n in range(PICTURES)]
    epochs = np.linspace(0, 100, 30_000).tolist()
    large = content(["a", "b", "c"], curves={"train.loss": (epochs, epochs)})
    large["result"] |= {"num_images": 50_000, "per_class": per_class, "confusion": pairs}
    large["pictures"] |= {"mistakes": pictures, "uncertain": pictures}
    assert len(render(**large)) < 5e6
    pages = [show(large) for _ in range(3)]
    assert min(page.seconds for page in pages) < 2
    assert len(texts(pages[0], "class-rows", 0)) == 1000
    assert len(texts(pages[0], "pair-rows", 0)) == PAIRS
    assert len(pages[0].evaluate("document.querySelector('.line.first').getAttribute('d')")) < 10_000


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_narrow_and_dark(show, width):
    long = [f"{'a-very-long-name-of-a-class' * 3} {n}" for n in range(20)]
    grounds = set()
    for scheme in ("light", "dark"):
        curves = {"train.loss": ([1.0, 2.0], [3.0, 2.0]), "validate_ema.top1": ([2.0], [50.0])}
        page = show(content(long, curves=curves, recipe="a" * 200), width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.errors == []
    assert len(grounds) == 2


def test_parts_without_content_are_left_out():
    for curves in ({}, {"train.loss": ([1.0, float("nan")], [float("nan"), 1.0])}):
        page = render(**content(["a", "b"], curves=curves))
        assert 'id="training"' not in page
        assert "Validation images: macro F1" not in page
    for name, label in (("train.loss", 'id="training"'), ("validate.macro_f1", "Validation images: macro F1")):
        assert label in render(**content(["a", "b"], curves={name: ([0.0], [0.0])}))
    assert "<h3>Recipe</h3>" not in page
    few = content(["a", "b"], pictures=NO_PICTURES)
    for name in ("per_class", "confusion", "calibration"):
        del few["result"][name]
    few["result"]["loss"] = None
    page = render(**few)
    assert "<section" in page
    for name in ("classes", "confusions", "mistakes", "uncertain", "calibration"):
        assert f'id="{name}"' not in page


# ------------------------------------------------------------------------------------------------ commands


@pytest.fixture
def run(tmp_path, tiny_image_folder):
    """The folder of a run with an untrained network of three classes, whose images are there."""
    values = metadata_values(tiny_image_folder(), "loss.label_smoothing=0.2", "mix.cutmix=1")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    write_checkpoint(folder / "checkpoints" / "best.safetensors", model_weights(3), values)
    (folder / "environment.json").write_text(json.dumps({"gpu": None, "packages": {"torch": "9.8.7"}}))
    lines = [
        {"event": "train", "epoch": 1, "loss": 1.5},
        {"event": "validate", "epoch": 1, "top1": 50, "weights": "ema"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_report_of_a_run(run, capsys):
    (run / "report").mkdir()
    (run / "report" / "index.html").write_text("old")
    assert command("report", run) == 0
    path = run / "report" / "index.html"
    assert capsys.readouterr().out.endswith(f"report: {path}\n")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    page = path.read_text("ascii")
    texts = ("seresnext26", "of 12 images", "Label smoothing 0.2 raises", "cutmix 1", "9.8.7", "label_smoothing: 0.2")
    assert [text for text in texts if text not in page] == []
    assert "validation, average (EMA)" in page
    assert "validation, model" not in page
    assert page.count("data:image/jpeg") == 2 * (12 + page.split('id="uncertain"')[0].count("Grad-CAM of class_"))


def test_the_page_goes_to_the_known_trackers_only_if_asked(run, capsys, monkeypatch):
    monkeypatch.setattr(tracker, "_PROGRAM", ("-c", "import sys; print(*sys.argv[1::3])"))
    assert command("report", run, "--attach") == 2
    assert "no tracker knows the run" in capsys.readouterr().err
    (run / "trackers").mkdir()
    (run / "trackers" / "mlflow.json").write_text("{}")
    for words, sent in (([], ""), (["--attach"], f"mlflow {run}/report\n")):
        assert command("report", run, *words) == 0
        assert capsys.readouterr().out.endswith(f"report: {run}/report/index.html\n{sent}")


@pytest.mark.parametrize("case", ["no metrics", "broken metrics"])
@pytest.mark.full
def test_the_report_of_a_validation_without_curves(run, case, capsys):
    (run / "metrics.jsonl").unlink()
    if case == "broken metrics":
        (run / "metrics.jsonl").write_text("1\n")
    output = run.parent / "new" / "report"
    assert command("validate", "--checkpoint", run, "--report", output) == 0
    assert 'id="training"' not in (output / "index.html").read_text()
    assert ("warning" in capsys.readouterr().out) == (case == "broken metrics")


def test_a_page_that_fails_leaves_the_result(run, monkeypatch):
    monkeypatch.setattr(module, "_pictures", Mock(side_effect=DataError("val/0.jpg is gone; restore the file")))
    words = ("--checkpoint", run, "--report", run / "report", "--json", run / "result.json")
    assert command("validate", *words) == 3
    assert json.loads((run / "result.json").read_text())["num_images"] == 12
    assert not (run / "report" / "index.html").exists()


def test_a_selection_of_classes(run, monkeypatch):
    """Of three outputs, the data have the first and the last. The Grad-CAM is of the last, the second in the logits."""
    weights = model_weights(3)
    weights["model.last_linear.bias"] += torch.tensor([0.0, 0.0, 100.0])
    save_file({name.removeprefix("model."): each for name, each in weights.items()}, run / "w.safetensors")
    data = run.parent / "two"
    for number, name in enumerate(("a", "c")):
        (data / "val" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (99 * number,) * 3).save(data / "val" / name / "1.png")
    (run / "map.csv").write_text("a,0\nc,2\n")
    targets = []
    original = module.grad_cam
    monkeypatch.setattr(module, "grad_cam", lambda *args: (targets.extend(args[2]), original(*args))[1])
    words = ("--data", data, "--class-map", run / "map.csv", "--image-size", 32, "--report", run)
    assert command("validate", "--checkpoint", run / "w.safetensors", *words) == 0
    assert targets == [2, 2]
    page = (run / "index.html").read_text()
    assert "50.00<small>" in page
    assert 'id="training"' in page  # The file lies in the folder of a run.


def test_without_the_extra_nothing_begins(run, capsys, without):
    without("captum")
    for words in (["report", run], ["validate", "--checkpoint", run, "--report", run / "report"]):
        assert command(*words) == 2
        output = capsys.readouterr()
        assert 'pip install "seresnext[report]"' in output.err
        assert "captum" in output.err
        assert output.out == ""
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["report", "none"], 2, "none"),
        (["report", "run", "--output", "run/metrics.jsonl"], 2, "metrics.jsonl"),
        (["report", "run", "--data", "none"], 3, "none"),
        (["report", "."], 4, "."),
        (["report", "run", "--output", "run/metrics.jsonl/report"], 2, "metrics.jsonl"),
        (["report", "run", "--output", "taken"], 2, "taken/index.html"),
        (["validate", "--checkpoint", "run", "run", "--report", "new"], 2, "--report"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(run, monkeypatch, capsys, words, code, named):
    monkeypatch.chdir(run.parent)
    (run.parent / "taken" / "index.html").mkdir(parents=True)
    assert command(*words) == code
    assert named in capsys.readouterr().err
    assert not (run / "report").exists()
    assert len(list((run.parent / "taken").iterdir())) == 1


@pytest.mark.parametrize(
    ("size", "stage"), [(224, "layer4"), (128, "layer4"), (64, "layer3"), (32, "layer2"), (8, "layer2")]
)
def test_a_map_has_positions(size, stage):
    assert choose_stage(size) == stage


@pytest.mark.parametrize("stage", ["layer4", "layer2"])
def test_the_maps_are_those_of_the_formula(stage):
    """Selvaraju et al. 2017, equations 1 and 2: ReLU of the channels, weighted by the mean gradient of the score."""
    torch.manual_seed(0)
    model = create_model("seresnext26", 5).eval()
    images, classes = torch.randn(9, 3, 64, 64), [4, 0, 2, 1, 3, 0, 0, 2, 4]
    kept = []
    hook = model.get_submodule(stage).register_forward_hook(lambda module, args, output: kept.append(output))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(9), classes].sum(), kept[0])
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    expected /= expected.amax((1, 2), keepdim=True).clamp_min(1e-12)  # A map without a positive place is 0.
    found = grad_cam(model, images, classes, stage)
    assert found.max() == 1
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=1e-4)
    other = grad_cam(model, images, [1] * 9, stage)
    assert not np.allclose(other, found, atol=0.01)


def test_the_overlay_is_orange_at_high_places():
    image = Image.new("RGB", (20, 20), (90, 90, 90))
    pixels = np.asarray(overlay(image, np.array([[1.0, 0.0], [0.0, 0.0]])), dtype=int)
    assert pixels[0, 0, 0] > 200 > pixels[0, 0, 2]
    assert (pixels[-1, -1] == 90).all()
