"""The file of weights for a path that a user gives."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import torch

from seresnext.errors import CheckpointError, UsageError, printable, shown_path
from seresnext.files import HUB_PREFIX, expand_home, is_remote, open_weights_file
from seresnext.models.registry import MODELS, SHORT_NAMES, canonical_name
from seresnext.models.timm_config import CONFIG, HUB_WEIGHTS
from seresnext.process.packages import extra
from seresnext.recipe.schema import ModelSection
from seresnext.weights.download import download as download_file
from seresnext.weights.download import sha256_in_name

PUBLISHED = "published"  # the value of `model.weights` that means the published file of the model

_REPOSITORY = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?", re.ASCII)


def find_weights(given: str | Path) -> Path:
    """Return the file of weights for a path.

    The path is a file, a run folder (the checkpoint `best`, or else `last`), or a folder with timm's `config.json`.
    The name of a model, such as `seresnext50`, is the published file if there is no such path (see `find_published`).
    `hf-hub:ORG/NAME` is downloaded. `~` is expanded. Raise CheckpointError for an address, for a folder without
    weights, and for a model without a published file.
    """
    if str(given).startswith(HUB_PREFIX):
        return find_weights(download(str(given).removeprefix(HUB_PREFIX)))
    if is_remote(given):
        raise CheckpointError(
            f"{given} is an address, not a file on this machine; download the file, and give the path"
        )
    path = expand_home(given)
    if os.path.isdir(path):  # noqa: PTH112 (raises nothing)
        return _checkpoint_in(path)
    is_name = str(given) in MODELS or str(given) in SHORT_NAMES
    return find_published(str(given)) if is_name and not path.exists() else path


def first_weights(section: ModelSection) -> Path:
    """Return the file `model.weights` of a recipe. Raises CheckpointError as `find_weights` and `find_published` do."""
    assert section.weights is not None
    return find_published(section.name) if section.weights == PUBLISHED else find_weights(section.weights)


def find_published(name: str) -> Path:
    """Return the published file of a model of `MODELS`, from the cache folder of `torch.hub` or after a download to it.

    Raises CheckpointError if there is no file and no download, or if the SHA-256 differs from the prefix in the name.
    """
    urls = MODELS[canonical_name(name)].weights_urls
    folder = Path(torch.hub.get_dir(), "checkpoints")
    where = f"download {' or '.join(urls)} to {shown_path(folder)}"
    for path in (folder / url.rpartition("/")[2] for url in urls):
        if path.exists():
            with open_weights_file(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(sha256_in_name(path)):
                raise CheckpointError(
                    f"{shown_path(path)} is damaged: the SHA-256 is {digest}; remove the file, and {where}"
                )
            return path
    problems = []
    for url in urls:
        try:
            return download_file(url, folder)
        except OSError as error:
            reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
            problems.append(f"{urlsplit(url).hostname}: {printable(reason)}")
    raise CheckpointError(
        f"the weights of {name} are not on this machine, and no download worked ({'; '.join(problems)}); {where}, or "
        "give the path of a file"
    )


def download(repository: str) -> Path:
    """Return a local folder with `config.json` and the weights of a repository `ORG/NAME[@REVISION]` of the Hub.

    The folder lies in the cache of huggingface_hub, which also serves without a network. Raise CheckpointError, or
    UsageError for a name that no repository has.
    """
    match = _REPOSITORY.fullmatch(repository)
    if match is None:
        raise UsageError(f"{HUB_PREFIX}{printable(repository)} is no name of a repository; give hf-hub:ORG/NAME")
    with extra("export"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    try:
        config = hf_hub_download(match[1], CONFIG, revision=match[2])
        try:
            hf_hub_download(match[1], HUB_WEIGHTS[0], revision=match[2])
        except EntryNotFoundError:
            hf_hub_download(match[1], HUB_WEIGHTS[1], revision=match[2])
    except Exception as error:  # The classes of errors differ between versions of the library.
        raise CheckpointError(
            f"{HUB_PREFIX}{repository} cannot be downloaded: {printable(error, 500)}; check name and network, or give "
            f"a folder with {CONFIG} and {HUB_WEIGHTS[0]}"
        ) from None
    return Path(config).parent


def _checkpoint_in(folder: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors"):
        for path in (folder / "checkpoints" / name, folder / name):
            if path.is_file():
                return path
    for name in HUB_WEIGHTS:
        if (folder / CONFIG).is_file() and (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{shown_path(folder)} is a folder without a checkpoint: checkpoints/best.safetensors and "
        f"checkpoints/last.safetensors do not exist, nor {CONFIG} with {' or '.join(HUB_WEIGHTS)}; give a file of "
        "weights, or a run folder"
    )
