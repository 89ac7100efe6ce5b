"""The export of a checkpoint: a folder that gets its name when its check has passed, the upload, and the card alone."""

import json
import os
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from pydantic import AliasPath, BaseModel, Field, FiniteFloat, ValidationError

from seresnext.classifier import class_names
from seresnext.errors import CheckpointError, DataError, Failure, UsageError, printable, shown_path
from seresnext.export.card import write_card
from seresnext.export.documents import EXPECTED, Manifest, digest_of, write_config, write_document, write_manifest
from seresnext.export.golden import compute_logits, draw_golden, expect, load_golden, read_golden, write_golden
from seresnext.export.kinds import KINDS
from seresnext.export.verify import verify
from seresnext.files import new_folder, write_output
from seresnext.models import CONFIG, LoadedWeights, SENet, build_pretrained, canonical_name, find_weights, open_weights
from seresnext.models.timm_config import first_problem
from seresnext.process.packages import extra, require_extra

_PACKAGES = ("seresnext", "torch", "numpy", "PIL", "safetensors", "onnx", "onnxruntime")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def export(options: Namespace) -> None:
    """Export a checkpoint by the options of the command line, check the export, and push the folder if asked."""
    name, output = "hub" if options.to == "timm" else options.to, options.output
    if os.path.lexists(output):
        raise UsageError(f"--output {shown_path(output)} exists; give the name of a new folder")
    require_extra("export", *KINDS[name].packages)
    if options.push:
        _check_push(options.push, options.golden)
    path = find_weights(options.checkpoint)
    loaded = open_weights(path, options.weights)
    model = build_pretrained(loaded)
    evaluation = read_evaluation(options.evaluation, loaded) if options.evaluation else None
    images = read_golden(options.golden) if options.golden else draw_golden()
    with new_folder(output) as folder:
        write_export(folder, name, model, loaded, path, images, evaluation)
        try:
            _, result = verify(folder)
        except CheckpointError as error:
            raise Failure(f"the export was not kept, because its check failed: {error}") from None
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{shown_path(output)}: {KINDS[name].summary}, {loaded.identify().name} ({loaded.weights} weights)")
    print(f"verified: {result}; {size / 1e6:.1f} MB")
    if options.push:
        print(f"pushed to {_push(output, options.push)}")


def write_export(
    folder: Path,
    kind: str,
    model: SENet,
    loaded: LoadedWeights,
    path: Path,
    images: list[bytes],
    evaluation: dict[str, float] | None,
) -> None:
    """Write all files of an export into a folder. `path` is the file of the weights. Raise DataError for bad images."""
    classes = class_names(loaded)
    architecture, how = loaded.identify().name, loaded.preprocessing
    try:
        write_config(folder / CONFIG, architecture, classes, how, (evaluation or {}).get("temperature"))
    except ValueError as error:  # For example, the name of a class is no text in UTF-8.
        reason = printable(str(error).splitlines()[0])
        raise CheckpointError(f"{loaded.source} cannot be exported: {reason}; use another checkpoint") from None
    KINDS[kind].write(model, folder / KINDS[kind].file)
    names = write_golden(images, folder / "golden")
    pixels = load_golden(folder / "golden", names, how)
    write_document(expect(names, pixels, compute_logits(model, pixels, how), classes), folder / EXPECTED)
    digest, step = digest_of(path), loaded.metadata.step if loaded.metadata else None
    if kind == "hub":
        size = (folder / KINDS[kind].file).stat().st_size
        (folder / "README.md").write_text(write_card(model, loaded, digest, size, evaluation), encoding="utf-8")
    source = {"file": printable(path.name), "sha256": digest, "weights": loaded.weights, "step": step}
    versions = {name: str(sys.modules[name].__version__) for name in _PACKAGES if name in sys.modules}
    manifest = Manifest(kind=kind, model=architecture, source=source, versions=versions, evaluation=evaluation)
    write_manifest(folder, manifest)


def _check_push(repository: str, golden: Path | None) -> None:
    """Raise UsageError unless the export can be pushed. Ask on standard input before the user's images become public.

    The check comes before the export, which takes minutes.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"--push {printable(repository)} is no name of a repository; give ORG/NAME")
    with extra("export"):
        from huggingface_hub import get_token
    if get_token() is None:
        raise UsageError("--push needs a token of the Hub; run `hf auth login`, or set HF_TOKEN")
    if golden is None:
        return
    question = f"--push sends the images of {shown_path(golden)}, with their EXIF data, to {repository}. Send? [y/N] "
    try:
        answer = input(question)
    except (EOFError, RuntimeError):  # RuntimeError: standard input is closed.
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was exported, because the images were not confirmed; omit --golden, or answer y")


def _push(folder: Path, repository: str) -> str:
    """Create the repository on the Hub, or the server HF_ENDPOINT, if there is none. Upload all files in one commit.

    Return the address.
    """
    with extra("export"):
        from huggingface_hub import HfApi
    try:
        api = HfApi(library_name="seresnext")
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by seresnext")
    except Exception as error:  # The classes of errors differ between versions of the library.
        raise Failure(
            f"{shown_path(folder)} is complete, and the upload to {repository} failed: {printable(error, 500)}; upload "
            f"the folder with `hf upload {repository} {shown_path(folder)}`"
        ) from None
    return printable(address)


def describe(options: Namespace) -> None:
    """Print the card of a checkpoint, or write the card to a file, by the options of the command line."""
    path = find_weights(options.checkpoint)
    loaded = open_weights(path, options.weights)
    evaluation = read_evaluation(options.evaluation, loaded) if options.evaluation else None
    size = path.stat().st_size
    card = write_card(build_pretrained(loaded), loaded, digest_of(path), size, evaluation, is_export=False)
    if options.output is None:
        print(card, end="")
    else:
        write_output(options.output, card)
        print(f"wrote {shown_path(options.output)}")


class _Evaluation(BaseModel):
    """The part of the JSON of `seresnext validate` that an export uses. Other keys are ignored."""

    top1: FiniteFloat = Field(ge=0, le=100)
    top5: FiniteFloat | None = Field(default=None, ge=0, le=100)
    loss: FiniteFloat
    num_images: int = Field(ge=1)
    model: str | None = None
    weights: str | None = None
    preprocessing: dict[str, Any] | None = None
    flip: bool | None = None
    num_classes: int | None = None
    temperature: FiniteFloat | None = Field(
        default=None, gt=0, validation_alias=AliasPath("calibration", "temperature")
    )


def read_evaluation(path: Path, loaded: LoadedWeights) -> dict[str, float]:
    """Return top1, top5, loss, num_images and perhaps temperature of the JSON of `seresnext validate`.

    Raise DataError for another file, and for the evaluation of other weights or with another preprocessing.
    """
    where = f"--evaluation {shown_path(path)}"
    try:
        found = _Evaluation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}; give the JSON of `seresnext validate`") from None
    except ValidationError as error:
        raise DataError(
            f"{where} is not the result of one checkpoint: {first_problem(error)}; give the --json of validate"
        ) from None
    how = loaded.preprocessing
    wanted = {
        "model": (canonical_name(found.model) if found.model else None, loaded.identify().name),
        "weights": (found.weights, loaded.weights),
        "flip": (found.flip, False),
        "num_classes": (found.num_classes, loaded.identify().num_classes),
        **{name: (value, getattr(how, name, value)) for name, value in (found.preprocessing or {}).items()},
    }
    for name, (given, own) in wanted.items():
        if given is not None and json.dumps(given) != json.dumps(own):
            raise DataError(
                f"{where} was measured with {name} {printable(given)}, and the export has {printable(own)}; measure "
                "the checkpoint with the same options"
            )
    return found.model_dump(include={"top1", "top5", "loss", "num_images", "temperature"}, exclude_none=True)
