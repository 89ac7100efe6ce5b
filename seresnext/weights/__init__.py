"""Files of weights, read as if a stranger had sent them: none of their code runs, and a small file takes little memory.

`torchfile` reads what torch.save wrote, `safetensors_file` the safer format; `names` undoes what wrappers do to names.
"""

from pathlib import Path

from torch import Tensor

from seresnext.weights.safetensors_file import read_safetensors
from seresnext.weights.torchfile import read_torch_file


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a file: safetensors if it is called so, else a torch file.

    Torch files have no metadata. Raises CheckpointError.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_torch_file(path), {}
