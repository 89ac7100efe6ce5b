"""The report of a validation: one HTML page that needs no network, with Grad-CAM maps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seresnext.data.decode.pillow import Decoding
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.synthetic import SyntheticReader
from seresnext.errors import DataError, for_terminal, shown_path
from seresnext.evaluation.statistics import BINS, confidences
from seresnext.files import read_small_json, write_output
from seresnext.metrics.sink import flatten
from seresnext.models import Preprocessing, SENet, build_pretrained
from seresnext.process.packages import extra
from seresnext.recipe import Recipe, to_values, to_yaml
from seresnext.report.figures import Series, build_chart
from seresnext.report.html import SIDE, address, render_page
from seresnext.report.plot import KINDS, MEASURES, Curve, read_curves
from seresnext.run.validate import Validation

PICTURES = 24  # thumbnails of the most confident mistakes, and of the least certain images
PAIRS = 200
NO_PICTURES = {"mistakes": (), "uncertain": (), "stage": None}
_MATRIX = 20  # classes of the largest matrix that is drawn


def write_report(validation: Validation, folder: Path, device: torch.device) -> Path:
    """Write `index.html` into a folder, and return the path. Raise Failure if the file cannot be written."""
    checkpoint = validation.checkpoint.absolute()
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    curves = {}
    if (run / "metrics.jsonl").exists():
        try:
            curves = read_curves(run / "metrics.jsonl")
        except DataError as error:
            print(f"warning: {for_terminal(error)}; the report has no curves")
    recipe, metadata = validation.loaded.recipe, validation.loaded.metadata
    hidden = MEASURES.keys() - {recipe.evaluation.best_by if recipe else ""}
    curves = {name: curve for name, curve in curves.items() if name.partition(".")[2] not in hidden}
    environment = read_small_json(run / "environment.json") or (metadata.environment if metadata else {})
    source = f"{validation.recipe.data.root}/{validation.recipe.data.val_split}"
    if isinstance(validation.reader, SyntheticReader):
        source = "synthetic images"
    page = render(
        validation.to_json(),
        curves,
        source=source,
        data=_data_rows(validation, source),
        pictures=_pictures(validation, device),
        notes=_loss_notes(recipe) if recipe and curves else (),
        recipe=to_yaml(to_values(recipe)) if recipe else None,
        environment=_environment_rows(environment),
    )
    path = folder / "index.html"
    write_output(path, page)
    return path


def render(result: Mapping[str, Any], curves: Mapping[str, Curve], **parts: Any) -> str:
    """Return the page as ASCII; other characters are references of HTML. An empty part has no section.

    result: the JSON file of a validation. curves: of metrics.jsonl. parts: `source`, which is folder and split; `data`
    and `environment`, which are rows of name and value; `recipe` as YAML; `notes` on the training loss; `pictures`.
    """
    per_class, pairs = result.get("per_class", ()), result.get("confusion", ())
    weakest_first = sorted(per_class, key=lambda row: (not row["support"], row["recall"]))
    support = {row["class"]: row["support"] for row in per_class}
    english = {row.wordnet_id: row.names[0] for row in imagenet_classes() if row.wordnet_id in support}
    return render_page(
        "seresnext.report",
        **parts,
        result=result,
        cards=_cards(result),
        per_class=weakest_first,
        matrix_names=[row["class"] for row in per_class],
        pairs=[(true, other, count, 100 * count / support[true]) for true, other, count in pairs[:PAIRS]],
        num_pairs=len(pairs),
        pair_classes=sorted({name for true, other, _ in pairs[:PAIRS] for name in (true, other)}),
        matrix=_matrix(per_class, pairs) if 2 <= len(per_class) <= _MATRIX else None,
        names=english,
        calibration=_calibration_chart(result),
        curves=_curve_charts(curves),
    )


def _cards(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    per_class, intervals = result.get("per_class", ()), result["intervals"]
    cards = []
    if len(per_class) > 5:
        low, high = intervals["top5"]
        cards.append(("Top-5", f"{result['top5']:.2f} %", f"95 % interval {low:.2f} to {high:.2f} %"))
    loss = result["loss"]
    cards.append(("Loss", "not finite" if loss is None else f"{loss:.4f}", "cross-entropy of an image, in nats"))
    if per_class:
        cards.append(("Balanced accuracy", f"{result['balanced_accuracy']:.2f} %", "mean recall of the classes"))
        cards.append(("Macro F1", f"{result['macro_f1']:.2f} %", "mean F1 of the classes"))
    if found := result.get("calibration"):
        text = f"{found['error_after']:.2f} % with temperature {found['temperature']:.3f}"
        cards.append(("Calibration error", f"{found['error']:.2f} %", text))
    if real := result.get("real_labels"):
        low, high = real["interval"]
        cards.append(("Reassessed labels", f"{real['top1']:.2f} %", f"95 % interval {low:.2f} to {high:.2f} %"))
    return cards


def _matrix(per_class: Sequence[Mapping[str, Any]], pairs: Sequence[Sequence[Any]]) -> list[list[tuple[int, float]]]:
    """Return images and share of the true class (0 to 1) of each pair, with the true classes as rows."""
    place = {row["class"]: number for number, row in enumerate(per_class)}
    counts = np.diag([round(row["recall"] * row["support"] / 100) for row in per_class])
    for true, predicted, count in pairs:
        counts[place[true], place[predicted]] = count
    return [[(int(count), count / max(1, row.sum())) for count in row] for row in counts]


def _calibration_chart(result: Mapping[str, Any]) -> dict[str, Any] | None:
    found = result.get("calibration")
    if not found:
        return None
    series = [Series("perfect", "ideal", ((0, 0), (100, 100)), radii=())]
    names = (f"as trained: error {found['error']:.2f} %", f"with temperature: error {found['error_after']:.2f} %")
    for name, style, bins in zip(names, ("first", "second"), (found["bins"], found["bins_after"]), strict=True):
        points = [(confidence, accuracy) for confidence, accuracy, _ in bins]
        radii = [2.5 + 7 * math.sqrt(count / result["num_images"]) for *_, count in bins]
        series.append(Series(name, style, points, radii))
    label = f"Accuracy of the images in {BINS} bins of confidence"
    return build_chart(label, "confidence, %", "accuracy, %", series, (0, 100), (0, 100))


def _curve_charts(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    names = {"loss": ("Loss", "loss"), "top1": ("Accuracy on the validation images", "top-1, %")}
    names |= {field: (f"Validation images: {name}", f"{name}, %") for field, name in MEASURES.items()}
    charts = []
    for measure, (label, y_name) in names.items():
        series = []
        for (kind, text), style in zip(KINDS.items(), ("first", "second", "third"), strict=True):
            curve = zip(*curves.get(f"{kind}.{measure}", ()), strict=True)
            points = [point for point in curve if np.isfinite(point).all()]
            if points and (measure == "loss" or kind != "train"):
                series.append(Series(text, style, points))
        if series:
            last = max(epoch for each in series for epoch, _ in each.points)
            charts.append(build_chart(label, "epoch", y_name, series, (0, last)))
    return charts


def _loss_notes(recipe: Recipe) -> list[str]:
    """Return sentences on the settings that raise the training loss above the validation loss."""
    notes = []
    if smoothing := recipe.loss.label_smoothing:
        notes.append(f"Label smoothing {smoothing:g} raises the training loss. The validation loss has no smoothing.")
    if mixed := [f"{name} {value:g}" for name in ("mixup", "cutmix") if (value := getattr(recipe.mix, name))]:
        notes.append(f"Mixed images ({', '.join(mixed)}) raise the training loss. Validation images are not mixed.")
    return notes


def _data_rows(validation: Validation, source: str) -> list[tuple[str, Any]]:
    recipe, reader, settings = validation.recipe, validation.reader, validation.settings
    rows = [
        ("images", f"{len(reader):,} of {source}"),
        ("classes", f"{len(validation.selection.names):,}"),
        ("fingerprint", reader.fingerprint),
        ("checkpoint", shown_path(validation.checkpoint)),
        ("precision", recipe.runtime.precision),
        *asdict(Preprocessing.of_recipe(recipe)).items(),
    ]
    rows += [(name, getattr(settings, name)) for name in ("class_map", "real_labels") if getattr(settings, name)]
    rows += [("flip", "mean of image and mirror image")] if settings.flip else []
    rows += [("note", validation.selection.notice)] if validation.selection.notice else []
    return [
        (name, ", ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value))
        for name, value in rows
    ]


def _environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fields of environment.json as rows, without empty fields and without the numbers of processes."""
    fields = {name: value for name, value in environment.items() if name != "launch"}
    return [(name, str(value)) for name, value in flatten(fields).items() if value != "null"]


def _pictures(validation: Validation, device: torch.device) -> dict[str, Any]:
    """Return the most confident `mistakes`, the least certain images (`uncertain`), and the `stage` of the Grad-CAM."""
    logits, labels = validation.result.logits, validation.result.labels
    is_drawn = "per_class" in validation.summary and not isinstance(validation.reader, SyntheticReader)
    if logits is None or labels is None or not is_drawn:
        return NO_PICTURES
    confidence, predictions = confidences(logits), logits.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")[:PICTURES]].tolist()
    uncertain = np.argsort(confidence, kind="stable")[:PICTURES].tolist()
    recipe, reader, names = validation.recipe, validation.reader, validation.selection.names
    how, decoding = Preprocessing.of_recipe(recipe), Decoding.of(recipe.data)
    chosen = sorted({*mistakes, *uncertain})
    crops = torch.stack([how.crop.decode_and_crop(reader.read(n), reader.name(n), decoding) for n in chosen])
    stage = choose_stage(how.image_size)
    columns = validation.selection.columns or range(logits.shape[1])
    targets = [columns[int(predictions[index])] for index in chosen]
    model = build_pretrained(validation.loaded).float().to(device)
    heats = grad_cam(model, how.normalise(crops).to(device), targets, stage)
    pictures = {}
    for index, crop, heat in zip(chosen, crops, heats, strict=True):
        image = Image.fromarray(crop.numpy())
        image.thumbnail((SIDE, SIDE))
        pictures[index] = {
            "name": reader.name(index),
            "label": names[int(labels[index])],
            "prediction": names[int(predictions[index])],
            "confidence": 100 * float(confidence[index]),
            "image": address(image),
            "heat": address(overlay(image, heat)),
            "is_small": how.image_size < SIDE,
        }
    shown = {"mistakes": mistakes, "uncertain": uncertain}
    return {name: [pictures[index] for index in indices] for name, indices in shown.items()} | {"stage": stage}


_STAGES = (("layer4", 32), ("layer3", 16), ("layer2", 8))  # stage and pixels of the image for each position
_FEWEST_POSITIONS = 4  # on a side; a smaller map says little about places
_BATCH = 8
_COLOUR = (255, 120, 0)


def choose_stage(image_size: int) -> str:
    """Return the last stage with at least 4 x 4 positions: `layer4` from 128 pixels, at least `layer2`."""
    return next((name for name, stride in _STAGES if image_size >= _FEWEST_POSITIONS * stride), _STAGES[-1][0])


def grad_cam(model: SENet, images: Tensor, classes: Sequence[int], stage: str) -> np.ndarray:
    """Return the maps of a stage for the given classes, scaled to 0..1: float32 N h w for images N C H W.

    High values are places that raise the score of the class (Selvaraju et al. 2017, arXiv:1610.02391).
    The parameters of the model get no gradients, so nothing before the stage is stored for the backward pass.
    """
    with extra("report"):
        from captum.attr import LayerGradCam
    model.eval().requires_grad_(False)
    method = LayerGradCam(model, model.get_submodule(stage))
    parts = []
    for start in range(0, len(images), _BATCH):
        some = slice(start, start + _BATCH)
        found = method.attribute(images[some], target=list(classes[some]), relu_attributions=True)
        assert isinstance(found, Tensor)
        parts.append(found.detach()[:, 0].float().cpu())
    maps = torch.cat(parts)
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)).numpy()


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return a gray copy of an image with orange at the high places of a map (h w, 0..1)."""
    share = Image.fromarray((0.75 * 255 * heat).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", image.size, _COLOUR), image.convert("L").convert("RGB"), share)
