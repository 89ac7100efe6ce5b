"""A model card: the README of a model on the Hugging Face Hub, written from measured and recorded facts.

The first lines are the Hub's YAML: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from seresnext.models import Preprocessing
from seresnext.printable import printable

_CLASSES_SHOWN = 20
_TAGS = ["image-classification", "timm", "seresnext"]


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a trained model. `training` has the settings of the run, empty for a file without a recipe.

    `evaluation` has `top1`, `top5` (percent), `loss`, `num_images` and perhaps `temperature`; None if nobody measured.
    `dataset` is the name of the training data on the Hub, if known. `is_export` is false for a card without a folder.
    """

    name: str
    architecture: str
    classes: Sequence[str]
    parameters: int
    preprocessing: Preprocessing
    weights: str
    source_sha256: str
    training: Mapping[str, object]
    evaluation: Mapping[str, float] | None
    dataset: str | None = None
    is_export: bool = True


def write_card(facts: ModelFacts) -> str:
    """Return the card as Markdown, with the YAML of the Hub."""
    header = yaml.safe_dump(_hub_metadata(facts), sort_keys=False, allow_unicode=True)
    how = facts.preprocessing
    steps = (
        f"Convert the image to RGB. EXIF rotation is not applied. Resize the shorter side to {how.image_size} / "
        f"{how.crop_pct:g} pixels ({how.interpolation}). Cut out the central {how.image_size} x {how.image_size}. "
        f"Scale to 0..1. Subtract the mean {_numbers(how.mean)} and divide by {_numbers(how.std)}."
    )
    model = {
        "Architecture": _text(facts.architecture),
        "Parameters": f"{facts.parameters:,}",
        "Weights": "the average of the training (ema)" if facts.weights == "ema" else "model",
        "Classes": f"{len(facts.classes):,}: {_listing(facts.classes)}",
        "SHA-256 of the source": f"`{facts.source_sha256}`",
    }
    training = {
        _text(name): _listing(value) if isinstance(value, list) else _text(value)
        for name, value in facts.training.items()
    }
    parts = [
        f"---\n{header}---\n# {_text(facts.name)}",
        _table(model),
        f"## Preprocessing\n\n{steps}",
        f"## Accuracy\n\n{_accuracy(facts.evaluation)}",
        *([f"## Training\n\n{_table(training)}"] if training else []),
        f"## Use\n\n{_usage(facts)}",
    ]
    return "\n\n".join(parts) + "\n"


def _hub_metadata(facts: ModelFacts) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": _TAGS}
    if facts.dataset:
        metadata["datasets"] = [facts.dataset]
    if facts.evaluation is None:
        return metadata
    names = {"Top 1 Accuracy": facts.evaluation["top1"], "Top 5 Accuracy": facts.evaluation.get("top5")}
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": "image-folder", "name": "validation images"},
        "metrics": [
            {"type": "accuracy", "name": name, "value": value} for name, value in names.items() if value is not None
        ],
    }
    return {**metadata, "metrics": ["accuracy"], "model-index": [{"name": facts.name, "results": [result]}]}


def _accuracy(evaluation: Mapping[str, float] | None) -> str:
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


def _usage(facts: ModelFacts) -> str:
    if not facts.is_export:
        return (
            "```bash\nseresnext predict --checkpoint FILE photo.jpg\n"
            "seresnext export --checkpoint FILE --to hub --output FOLDER   # for timm and the Hugging Face Hub\n```"
        )
    return (
        "```python\nimport timm\n\n"
        'model = timm.create_model("hf-hub:ORG/NAME", pretrained=True).eval()   # or "local-dir:FOLDER"\n'
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))\n```\n\n"
        "`seresnext verify FOLDER` checks a copy of this folder: the digests of all files, and the logits of the "
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
