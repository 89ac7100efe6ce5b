"""The upload of an export to the Hugging Face Hub, or to the server that HF_ENDPOINT names."""

from __future__ import annotations

import re
from pathlib import Path

from seresnext.errors import Failure, UsageError
from seresnext.printable import printable, shown_path
from seresnext.process.packages import extra

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_push(repository: str, golden: Path | None) -> None:
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


def push(folder: Path, repository: str) -> str:
    """Create the repository if there is none, upload all files in one commit, and return the address."""
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
