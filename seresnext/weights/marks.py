"""The marks of this project's checkpoints among safetensors files, and the check of every byte of a checkpoint.

Other tools also write metadata: Hugging Face's tools always write `format`. No other tool writes the marks below.
One mark is enough, since damage may have changed the others: a damaged checkpoint must not pass for bare weights.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from seresnext.errors import CheckpointError
from seresnext.printable import printable
from seresnext.weights.opening import open_file

FORMAT = "seresnext-2"
"""The format of new files. It rises with every version whose files an older version cannot read.

A checkpoint holds the whole recipe, and a version refuses recipe keys that it does not know. Version 0.1.0 wrote
`seresnext-1`; each file of 0.2.0 has keys that came later, such as `optimizer.betas`.
"""
READABLE_FORMATS = ("seresnext-1", FORMAT)
HEADER_START = b'{"__metadata__":{"digest":"'
DIGEST_ZEROS = b"0" * 64
"""The digest field while the digest is computed."""
DIGEST_OFFSET = 8 + len(HEADER_START)
_FIX = "use another checkpoint"


def is_checkpoint(metadata: Mapping[str, str]) -> bool:
    """Return whether a safetensors file with these metadata is a checkpoint of this project, whole or damaged."""
    return (
        metadata.get("format", "").startswith("seresnext-")
        or re.fullmatch(r"[0-9a-f]{64}", metadata.get("digest", "")) is not None
        or "recipe_hash" in metadata
    )


def check_format(found: str | None, source: str) -> None:
    """Raise CheckpointError unless this version reads the metadata `format` of the file `source`."""
    if found in READABLE_FORMATS:
        return
    match = re.fullmatch(r"seresnext-([0-9]{1,9})", found or "")
    if match and int(match[1]) > int(FORMAT.removeprefix("seresnext-")):
        raise CheckpointError(
            f"{source} has the format {found}, which a newer version wrote; this version reads formats up to {FORMAT}. "
            "Update this program to use the file"
        )
    raise CheckpointError(f"{source} has the format {printable(found)}, not of a run. Use a checkpoint of {FORMAT}")


def verify_digest(path: Path) -> None:
    """Check every byte of the file against the digest in the file.

    Raise CheckpointError for a file that is damaged or of another project, UnreadableError for an unreadable file.
    """
    with open_file(path) as file:
        start = file.read(DIGEST_OFFSET + len(DIGEST_ZEROS))
        claimed = start[DIGEST_OFFSET:]
        if start[8:DIGEST_OFFSET] != HEADER_START or len(claimed) != len(DIGEST_ZEROS):
            raise CheckpointError(f"{path} is no checkpoint of this project, or the beginning is damaged; {_FIX}")
        digest = hashlib.sha256(start[:DIGEST_OFFSET] + DIGEST_ZEROS)
        hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest().encode() != claimed:
        raise CheckpointError(f"{path} is damaged: the content does not have the digest that was saved; {_FIX}")
