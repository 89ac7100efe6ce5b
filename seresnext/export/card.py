"""A model card: the README of a model on the Hugging Face Hub, written from measured and recorded facts.

The first lines are the Hub's YAML: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from seresnext.classifier import class_names
from seresnext.errors import printable
from seresnext.models import LoadedWeights, Preprocessing, SENet, create_model
from seresnext.models.index import describe_model
from seresnext.recipe.schema import Recipe

_CLASSES_SHOWN = 20
_TAGS = ["image-classification", "timm", "seresnext"]
_IMAGENET = (1_281_167, 1000)  # training images and classes

Evaluation = Mapping[str, float]  # `top1`, `top5` (percent), `loss`, `num_images` and perhaps `temperature`


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


def describe_training(loaded: LoadedWeights, file_size: int) -> dict[str, object]:
    """Return the facts of a model under the names of the model index, and further settings of the run.

    The result is empty for a file without a recipe.
    """
    recipe, metadata = loaded.recipe, loaded.metadata
    if recipe is None or metadata is None:
        return {}
    num_images, global_size = metadata.dataset["num_images"], recipe.batch.global_size
    training = {
        "File Size": file_size,
        "Training Techniques": _techniques(recipe),
        "Training Data": [f"{num_images:,} images of {recipe.model.num_classes:,} classes"],
        "Training Resources": _resources(metadata.environment),
        "LR": recipe.optimizer.lr,
        "Epochs": round(metadata.step / max(1, num_images // global_size), 2),
        "Dropout": recipe.model.drop_rate,
        "Momentum": recipe.optimizer.momentum if recipe.optimizer.name == "sgd" else None,
        "Batch Size": global_size,
    }
    name, num_classes, in_channels = loaded.identify()
    with torch.device("meta"):
        model = create_model(name, num_classes, in_channels)
    return {
        **describe_model(name, model, loaded.preprocessing, training),
        "Steps": metadata.step,
        "Planned length": recipe.length,
        "Schedule": f"{recipe.schedule.name}, warmup {recipe.schedule.warmup}",
        "Seed": recipe.runtime.seed,
    }


def _techniques(recipe: Recipe) -> list[str]:
    optimizer, policy = recipe.optimizer, recipe.augment.policy
    is_used = {
        "SGD with Momentum" if optimizer.momentum else "SGD": optimizer.name == "sgd",
        "Nesterov Momentum": optimizer.name == "sgd" and optimizer.nesterov,
        "AdamW": optimizer.name == "adamw",
        "Weight Decay": optimizer.weight_decay,
        "Gradient Clipping": optimizer.clip_norm,
        "Label Smoothing": recipe.loss.label_smoothing,
        "Mixup": recipe.mix.mixup,
        "CutMix": recipe.mix.cutmix,
        "RandAugment": policy and policy.name == "randaugment",
        "TrivialAugment": policy and policy.name == "trivialaugment",
        "Color Jitter": recipe.augment.color_jitter,
        "Random Erasing": recipe.augment.erasing,
        "Stochastic Depth": recipe.model.drop_path_rate,
        "Exponential Moving Average": recipe.ema,
        "Fine-Tuning": recipe.model.weights,
    }
    return [name for name, value in is_used.items() if value]


def _resources(environment: Mapping[str, Any]) -> str | None:
    """Return the number of processes and the device, None if the checkpoint does not record both."""
    size, gpu, cpu = (environment.get(key) for key in ("world_size", "gpu", "cpu"))
    device = gpu or cpu
    if not isinstance(size, int) or not isinstance(device, str):
        return None
    return f"{size}x {gpu}" if gpu else f"{size} process{'es' if size > 1 else ''} on {cpu}"


def _hub_metadata(name: str, loaded: LoadedWeights, evaluation: Evaluation | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": _TAGS}
    dataset = loaded.metadata.dataset if loaded.metadata else {"num_images": 0, "classes": ()}
    if (dataset["num_images"], len(dataset["classes"])) == _IMAGENET:
        metadata["datasets"] = ["imagenet-1k"]
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
