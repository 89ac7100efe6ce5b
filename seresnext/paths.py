"""Paths that a user gives: addresses in place of paths, and the home folder."""

import argparse
import os
from pathlib import Path

from seresnext.errors import DataError, UsageError
from seresnext.printable import printable, shorten

HUB_PREFIX = "hf-hub:"  # before a repository of the Hugging Face Hub, as in timm


def is_remote(path: str | Path) -> bool:
    """Return whether a path is an address, such as `https://host/file`."""
    return "://" in str(path)


def expand_home(path: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder, if the user exists."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises RuntimeError for an unknown user)


def path_argument(text: str) -> Path:
    """Return the path in an argument of a command, with `~` expanded: a `type` for argparse.

    Raises ArgumentTypeError for an empty text, an address, and a path that the system refuses, such as a path inside a
    folder of another user. Methods of `Path` raise OSError for such a path.
    """
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is an address, not a path; download the file, and give the path")
    path = Path(text_argument(text))
    try:
        path.exists()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{shorten(text)}: {error.strerror}; give another path") from None
    return path


def text_argument(text: str) -> str:
    """Return the text of an argument: a name, a path or an address. In a path `~` is expanded.

    Raises ArgumentTypeError for an empty text.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; give a value, or omit the option")
    return str(expand_home(text)) if text.startswith("~") else text


def is_list(root: str | Path) -> bool:
    """Return whether the data is a list of photos by the ending of the path, and not a folder."""
    return str(root).lower().endswith((".csv", ".jsonl")) and not os.path.isdir(root)  # noqa: PTH112 (raises nothing)


def check_data_folder(root: str) -> None:
    """Raise DataError if the folder of the data, or the list, does not exist. An address is checked later."""
    exists = os.path.isfile if is_list(root) else os.path.isdir  # (raises nothing)
    if not is_remote(root) and not exists(root):
        kind = "file" if is_list(root) else "folder"
        raise DataError(
            f"there is no {kind} {root}; give the folder of the images, or a list (.csv, .jsonl), with --data"
        )


def checkpoint_argument(given: str) -> Path:
    """Return the path of the checkpoint that `--resume` names. Raises UsageError unless the path is a file.

    For a run folder the message names the newest checkpoint of the folder.
    """
    if is_remote(given):
        raise UsageError(f"--resume {given} is an address. Download the checkpoint, and give the path of the file")
    path = expand_home(given)
    is_file = os.path.isfile  # (raises nothing)
    if is_file(path):
        return path
    for newest in (path / "checkpoints" / "last.safetensors", path / "last.safetensors"):
        if is_file(newest):
            raise UsageError(f"--resume {path} is a folder. Give a checkpoint of the folder: --resume {newest}")
    raise UsageError(
        f"--resume {printable(given, longest=300)}: no such file. Give auto, never, or the path of a checkpoint"
    )
