"""Files of weights, read as files of a stranger: no code in a file runs, and a small file takes little memory.

`torchfile` reads files of torch.save. `safetensors_file` reads the safer format, and recognises checkpoints of this
project. `names` removes prefixes that wrappers add to names.
"""

from pathlib import Path

from seresnext.weights.safetensors_file import read_checked
from seresnext.weights.torchfile import WeightsFile, read_torch_file


def read_weights(path: Path, weights: str | None = None) -> WeightsFile:
    """Return the tensors (on the CPU) and the metadata of a file. `weights` is as in `read_torch_file`.

    Raise CheckpointError, also for a checkpoint that is damaged or of a newer version.
    """
    found = read_checked(path)
    return WeightsFile(*found, "model", {}) if found else read_torch_file(path, weights)
