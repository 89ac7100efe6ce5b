"""The JSON files of an export: configuration, expected logits, and the manifest with the digests of all files.

A folder may come from a stranger. Each file is checked before use. `models.timm_config` reads the configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from seresnext.errors import CheckpointError, printable, shown_path
from seresnext.files import open_weights_file
from seresnext.models import CONFIG, MODELS, Preprocessing
from seresnext.models.timm_config import first_problem

EXPECTED, MANIFEST = "golden/expected.json", "manifest.json"
DIGEST = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_NO_DIGEST = "0" * 64
_MOST_BYTES = 64 << 20  # of a JSON file
MOST_GOLDEN = 8


class ExpectedImage(BaseModel, frozen=True, extra="forbid"):
    """The digest of the pixels of a golden image after decode, resize and crop (uint8 H W C), and the logits."""

    pixels: DIGEST
    logits: list[FiniteFloat]


class Expected(BaseModel, frozen=True, extra="forbid"):
    """The file golden/expected.json: for each golden image the logits of the source model, in the order of `classes`.

    `tolerance` is the largest deviation of a logit that `verify` accepts.
    """

    classes: list[str]
    tolerance: Annotated[FiniteFloat, Field(gt=0)]
    images: Annotated[dict[str, ExpectedImage], Field(min_length=1, max_length=MOST_GOLDEN)]

    @model_validator(mode="after")
    def _agree(self) -> Expected:
        if any(len(image.logits) != len(self.classes) for image in self.images.values()):
            raise ValueError("an image has not one logit for each class")
        return self


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The file manifest.json. `files` has the digest of each other file, `digest` the digest of the manifest.

    The digest of the manifest is computed with zeros in place of the digest. `source` describes the exported file.
    """

    format: Literal[1] = 1
    kind: str
    model: str
    source: dict[str, str | int | None]
    versions: dict[str, str]
    evaluation: dict[str, FiniteFloat] | None
    files: dict[str, DIGEST] = {}
    digest: DIGEST = _NO_DIGEST


AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


def write_config(
    path: Path, architecture: str, classes: list[str], how: Preprocessing, temperature: float | None
) -> None:
    """Write config.json: model, classes and preprocessing, in the form that timm and the Hub read.

    `temperature` divides the logits before softmax. Raise ValueError for the name of a class that is no text in UTF-8.
    """
    has_our_names = MODELS[architecture].stem_pool == "ceil"
    values = {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": 2048,
        "label_names": classes,
        "global_pool": "avg",
        "image_mode": "RGB",
        "temperature": temperature,
        # Earlier versions refuse an export with these keys. An export that does without stays readable.
        "exif_rotation": how.exif_rotation or None,
        "background": how.background,
        "pretrained_cfg": {
            "input_size": (3, how.image_size, how.image_size),
            "crop_pct": how.crop_pct,
            "crop_mode": "center",
            "interpolation": how.interpolation,
            "mean": how.mean,
            "std": how.std,
            "num_classes": len(classes),
            "first_conv": "layer0.conv1" if has_our_names else "conv1",
            "classifier": "last_linear" if has_our_names else "fc",
        },
    }
    known = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_document(kind: type[AnyDocument], path: Path) -> AnyDocument:
    """Return the checked content of a file. Raise CheckpointError with the first problem."""
    with open_weights_file(path) as file:
        data = file.read(_MOST_BYTES)  # Longer JSON would be cut, and so refused.
    if kind is Manifest:
        blank = re.sub(rb'("digest": ")[0-9a-f]{64}(")', rb"\g<1>" + _NO_DIGEST.encode() + rb"\2", data)
        if f'"digest": "{hashlib.sha256(blank).hexdigest()}"'.encode() not in data:
            raise CheckpointError(f"{shown_path(path)} was changed: the digest differs; export the model again")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise CheckpointError(f"{shown_path(path)} cannot be used: {first_problem(error)}; export again") from None


def write_document(document: BaseModel, path: Path) -> None:
    """Write a file; for a manifest with the digest."""
    text = document.model_dump_json(indent=1) + "\n"
    if isinstance(document, Manifest):
        text = text.replace(_NO_DIGEST, hashlib.sha256(text.encode()).hexdigest())
    path.write_text(text, encoding="utf-8")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of all other files in a folder."""
    files = {name: digest_of(folder / name) for name in _files(folder)}
    write_document(manifest.model_copy(update={"files": files, "digest": _NO_DIGEST}), folder / MANIFEST)


def check_files(folder: Path, manifest: Manifest, model: str) -> None:
    """Raise CheckpointError that names each file that is missing, or differs. `model` is the file of the model."""
    problems, found = [], _files(folder)
    for name, digest in manifest.files.items():
        if name not in found:
            problems.append(f"{printable(name)} is missing")
        elif digest_of(folder / name) != digest:
            problems.append(f"{printable(name)} was changed: the digest differs from {MANIFEST}")
    problems += [f"{name} is not in {MANIFEST}" for name in (CONFIG, EXPECTED, model) if name not in manifest.files]
    if problems:
        raise CheckpointError(f"{shown_path(folder)} fails: {'; '.join(problems)}; export the model again")


def _files(folder: Path) -> list[str]:
    """Return the names of the files in a folder, without the manifest."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file. Raise CheckpointError."""
    with open_weights_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
