"""Files of weights, read as files of a stranger: no code in a file runs, and a small file takes little memory.

`torchfile` reads files of torch.save, `safetensors_file` the safer format. `marks` recognises checkpoints of this
project. `names` removes prefixes that wrappers add to names.
"""

from pathlib import Path

from torch import Tensor

from seresnext.errors import CheckpointError
from seresnext.printable import shown_path
from seresnext.weights.marks import DIGEST_OFFSET, HEADER_START, check_format, is_checkpoint, verify_digest
from seresnext.weights.opening import open_file
from seresnext.weights.safetensors_file import read_header, read_safetensors
from seresnext.weights.torchfile import read_torch_file


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (on the CPU) and the metadata of a file.

    A file with the ending .safetensors, or with the first bytes of a checkpoint, is read as safetensors, any other file
    as a torch file. The digest of a checkpoint is checked. The metadata of a bare file of weights are empty, even if
    another tool wrote some. Raise CheckpointError.
    """
    if not _is_safetensors(path):
        return read_torch_file(path), {}
    metadata = read_metadata(path)
    return read_safetensors(path)[0], metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a checkpoint of this project, with the digest checked; empty for a bare file of weights.

    Raise CheckpointError, also for a checkpoint that is damaged or of a newer version.
    """
    metadata = read_header(path).metadata if _is_safetensors(path) else {}
    if not is_checkpoint(metadata):
        return {}
    try:
        verify_digest(path)
    except OSError as error:
        raise CheckpointError(f"{shown_path(path)} cannot be read: {error.strerror}") from error
    check_format(metadata.get("format"), shown_path(path))
    return metadata


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with open_file(path) as file:  # For example step-00000003.safetensors.superseded.
        return file.read(DIGEST_OFFSET)[8:] == HEADER_START
