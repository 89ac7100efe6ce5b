"""The check of an export: every byte by digest, then the golden images through decode, resize, crop and network."""

import itertools
from pathlib import Path

import torch
from torch import Tensor

from seresnext.errors import CheckpointError, DataError, printable, shown_path
from seresnext.export.documents import EXPECTED, MANIFEST, Expected, Manifest, check_files, read_document
from seresnext.export.golden import compute_logits, load_golden, pixels_digest
from seresnext.export.kinds import KINDS
from seresnext.models import CONFIG, Preprocessing, TimmConfig


def verify(folder: Path) -> tuple[Manifest, str]:
    """Check an export. Return the manifest and the result: counts, the largest deviation of a logit and the limit.

    Raise CheckpointError with the reason if a byte, the preprocessing or the classes differ.
    """
    manifest = read_document(Manifest, folder / MANIFEST)
    if manifest.kind not in KINDS:
        raise CheckpointError(f"{shown_path(folder)} has the unknown kind {printable(manifest.kind)}; update seresnext")
    kind = KINDS[manifest.kind]
    check_files(folder, manifest, kind.file)
    config, expected = read_document(TimmConfig, folder / CONFIG), read_document(Expected, folder / EXPECTED)
    how = config.steps(3, CONFIG)
    for number, (name, other) in enumerate(itertools.zip_longest(config.label_names or (), expected.classes)):
        if name != other:
            raise CheckpointError(
                f"{shown_path(folder)} fails: class {number} is {printable(name)} in {CONFIG} and {printable(other)} "
                f"in {EXPECTED}, so the classes have another order or other names; export the model again"
            )
    names = list(expected.images)
    if unsafe := [name for name in names if f"golden/{name}" not in manifest.files]:
        where = f"{shown_path(folder / EXPECTED)} names {printable(unsafe[0])}"
        raise CheckpointError(f"{where}, which has no digest; export the model again")
    try:
        pixels = load_golden(folder / "golden", names, how)
    except DataError as error:
        raise CheckpointError(f"{shown_path(folder)} fails: {error}") from None
    logits = compute_logits(kind.open(folder / kind.file, config), pixels, how)
    wanted = torch.tensor([image.logits for image in expected.images.values()])
    if logits.shape != wanted.shape:
        raise CheckpointError(
            f"{shown_path(folder)} fails: the network gives {logits.shape[1]} logits, and {EXPECTED} has "
            f"{wanted.shape[1]}; export the model again"
        )
    deviations = (logits - wanted).abs().nan_to_num(torch.inf).amax(1)
    if deviations.max() > expected.tolerance:
        _refuse(folder, how, expected, pixels, deviations)
    return manifest, (
        f"{len(manifest.files)} files have their digests; the logits of {len(names)} golden images deviate by at most "
        f"{deviations.max():.2g} (limit {expected.tolerance:.2g})"
    )


def _refuse(folder: Path, how: Preprocessing, expected: Expected, pixels: Tensor, deviations: Tensor) -> None:
    """Raise CheckpointError with the worst image, and with the step that differs."""
    names = list(expected.images)
    digests = zip(names, map(pixels_digest, pixels), strict=True)
    changed = [name for name, digest in digests if digest != expected.images[name].pixels]
    cause = (
        f"the pixels of {len(changed)} images differ after decode, resize and crop, so {CONFIG} has another "
        f"preprocessing than the export had (now {how.image_size} pixels, crop_pct {how.crop_pct}, "
        f"{how.interpolation}), or this Pillow decodes differently"
        if changed
        else f"the pixels are those of the export, so the weights, or mean and std of {CONFIG}, differ"
    )
    raise CheckpointError(
        f"{shown_path(folder)} fails: the logits of golden/{printable(names[int(deviations.argmax())])} deviate by "
        f"{deviations.max():.2g} (limit {expected.tolerance:.2g}); {cause}; export the model again"
    )
