"""Files of weights, read as files of a stranger: no code in a file runs, and a small file takes little memory.

`torchfile` reads files of torch.save. `safetensors_file` reads the safer format, and recognises checkpoints of this
project. `names` removes prefixes that wrappers add to names.
"""

from pathlib import Path

from seresnext.errors import shown_path
from seresnext.files import open_weights_file
from seresnext.weights.safetensors_file import (
    DIGEST_OFFSET,
    HEADER_START,
    check_format,
    is_checkpoint,
    read_safetensors,
    verify_digest,
)
from seresnext.weights.torchfile import WeightsFile, read_torch_file


def read_weights(path: Path, weights: str | None = None) -> WeightsFile:
    """Return the tensors (on the CPU) and the metadata of a file. `weights` is as in `read_torch_file`.

    A file with the ending .safetensors, or with the first bytes of a checkpoint, is read as safetensors, any other file
    as a torch file. The digest of a checkpoint is checked. The metadata of a bare file of weights are empty, even if
    another tool wrote some. Raise CheckpointError, also for a checkpoint that is damaged or of a newer version.
    """
    if path.suffix != ".safetensors":
        with open_weights_file(path) as file:  # A checkpoint can be a step-00000003.safetensors.superseded.
            start = file.read(DIGEST_OFFSET)
        if start[8:] != HEADER_START:
            return read_torch_file(path, weights)
    tensors, metadata = read_safetensors(path)
    if not is_checkpoint(metadata):
        return WeightsFile(tensors, {}, "model", {})
    verify_digest(path)
    check_format(metadata.get("format"), shown_path(path))
    return WeightsFile(tensors, metadata, "model", {})
