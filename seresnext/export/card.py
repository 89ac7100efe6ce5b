"""A model card: the README of a model on the Hugging Face Hub, written from measured and recorded facts.

The first lines are the Hub's YAML: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from seresnext.classifier import class_names
from seresnext.export.facts import describe_training, hub_dataset
from seresnext.models import LoadedWeights, Preprocessing, SENet
from seresnext.printable import printable

_CLASSES_SHOWN = 20
_TAGS = ["image-classification", "timm", "seresnext"]


Evaluation = Mapping[str, float]
"""`top1`, `top5` (percent), `loss`, `num_images` and perhaps `temperature`."""


def write_card(
    model: SENet,
    loaded: LoadedWeights,
    digest: str,
    file_size: int,
    evaluation: Evaluation | None,
    is_export: bool = True,
) -> str:
    """Return the card as Markdown, with the YAML of the Hub.

    `digest` is the SHA-256 of the source, `file_size` the bytes of the weights. Without `is_export` there is no folder.
    """
    architecture, classes, how = loaded.identify().name, class_names(loaded), loaded.preprocessing
    name = architecture if loaded.recipe is None else f"{architecture}, {len(classes)} classes"
    header = yaml.safe_dump(_hub_metadata(name, loaded, evaluation), sort_keys=False, allow_unicode=True)
    turn = "Turn the image as its EXIF asks." if how.exif_rotation else "EXIF rotation is not applied."
    fill = f" Behind transparent pixels is the colour {_numbers(how.background)}." if how.background else ""
    steps = (
        f"{turn} Convert the image to RGB.{fill} Resize the shorter side to {how.image_size} / "
        f"{how.crop_pct:g} pixels ({how.interpolation}). Cut out the central {how.image_size} x {how.image_size}. "
        f"Scale to 0..1. Subtract the mean {_numbers(how.mean)} and divide by {_numbers(how.std)}."
    )
    table = {
        "Architecture": _text(architecture),
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "Weights": "the average of the training (ema)" if loaded.weights == "ema" else "model",
        "Classes": f"{len(classes):,}: {_listing(classes)}",
        "SHA-256 of the source": f"`{digest}`",
    }
    training = {
        _text(key): _listing(value) if isinstance(value, list) else _text(value)
        for key, value in describe_training(loaded, file_size).items()
    }
    parts = [
        f"---\n{header}---\n# {_text(name)}",
        _table(table),
        f"## Preprocessing\n\n{steps}",
        f"## Accuracy\n\n{_accuracy(evaluation)}",
        *([f"## Training\n\n{_table(training)}"] if training else []),
        f"## Use\n\n{_usage(is_export, how)}",
    ]
    return "\n\n".join(parts) + "\n"


def _hub_metadata(name: str, loaded: LoadedWeights, evaluation: Evaluation | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": _TAGS}
    if dataset := hub_dataset(loaded.metadata):
        metadata["datasets"] = [dataset]
    if evaluation is None:
        return metadata
    names = {"Top 1 Accuracy": evaluation["top1"], "Top 5 Accuracy": evaluation.get("top5")}
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": "image-folder", "name": "validation images"},
        "metrics": [
            {"type": "accuracy", "name": metric, "value": value} for metric, value in names.items() if value is not None
        ],
    }
    return {**metadata, "metrics": ["accuracy"], "model-index": [{"name": name, "results": [result]}]}


def _accuracy(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "Not measured. Accuracy and temperature are absent, because there was no evaluation."
    rows = {
        "Top-1": f"{evaluation['top1']:.2f} %",
        **({"Top-5": f"{evaluation['top5']:.2f} %"} if "top5" in evaluation else {}),
        "Loss": f"{evaluation['loss']:.4f}",
        "Images": f"{evaluation['num_images']:,.0f}",
    }
    if "temperature" not in evaluation:
        return f"{_table(rows)}\n\nThe probabilities are not calibrated."
    rows["Temperature"] = f"{evaluation['temperature']:.4f}"
    return f"{_table(rows)}\n\nDivide the logits by the temperature before softmax for calibrated probabilities."


def _usage(is_export: bool, how: Preprocessing) -> str:
    if not is_export:
        return (
            "```bash\nseresnext predict --checkpoint FILE photo.jpg\n"
            "seresnext export --checkpoint FILE --to hub --output FOLDER   # for timm and the Hugging Face Hub\n```"
        )
    absent = ["does not turn images: call `PIL.ImageOps.exif_transpose` before"] * how.exif_rotation
    absent += ["does not fill transparent pixels: do so before"] * (how.background is not None)
    return (
        "```python\nimport timm\n\n"
        'model = timm.create_model("hf-hub:ORG/NAME", pretrained=True).eval()   # or "local-dir:FOLDER"\n'
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))\n```\n\n"
        + "".join(f"The transform of timm {words}.\n\n" for words in absent)
        + "`seresnext verify FOLDER` checks a copy of this folder: the digests of all files, and the logits of the "
        "images in `golden/`."
    )


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(_text(name) for name in names[:_CLASSES_SHOWN])
    return f"{shown}, ..." if len(names) > _CLASSES_SHOWN else shown


def _text(value: object) -> str:
    """Return text of strangers on one line, without the meaning that HTML and Markdown give to characters."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(printable(value)))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
