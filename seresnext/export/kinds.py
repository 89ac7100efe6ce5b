"""The kinds of exports: how each is written, and how each is opened again."""

import io
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.fx.experimental import _config as shapes

from seresnext.classifier import class_names
from seresnext.errors import CheckpointError, printable, shown_path
from seresnext.export.golden import Network
from seresnext.models import LoadedWeights, SENet, TimmConfig, build_pretrained, timm_state_dict
from seresnext.models.pretrained import build_folded, fold_batchnorm
from seresnext.process.packages import extra
from seresnext.weights import read_weights

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_EXAMPLE = (2, 3, 64, 64)  # The export for a batch of 1 would fix the batch at 1.
_DYNAMIC = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)  # batch, height and width


@dataclass(frozen=True)
class Kind:
    """A kind of export: the file of the model, its writer and its opener, and the packages that an export needs."""

    summary: str
    file: str
    write: Callable[[SENet, Path], None]
    open: Callable[[Path, TimmConfig], Network]
    packages: tuple[str, ...] = ()


def _write_weights(model: SENet, path: Path) -> None:
    _save(timm_state_dict(model), path)


def _open_weights(path: Path, config: TimmConfig) -> Network:
    # With the configuration, the tensors are compared before a model is built: the numbers can exceed the file.
    loaded = LoadedWeights(shown_path(path), read_weights(path)[0], config=config)
    class_names(loaded)  # raises CheckpointError unless the model is for RGB
    return build_pretrained(loaded)


def _write_folded(model: SENet, path: Path) -> None:
    _save(fold_batchnorm(model).state_dict(), path)


def _open_folded(path: Path, config: TimmConfig) -> Network:
    return build_folded(config.architecture, len(config.label_names or ()), read_weights(path)[0], shown_path(path))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # Other tools require the metadata `format`. The bytes are written here, so that a full disk raises OSError.
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def _write_exported(model: SENet, path: Path) -> None:
    file = io.BytesIO()
    # With this setting the program also takes images with a last feature map of one pixel.
    with _quiet(), shapes.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        torch.export.save(torch.export.export(model, (torch.zeros(_EXAMPLE),), dynamic_shapes=_DYNAMIC), file)
    path.write_bytes(file.getvalue())


def _open_exported(path: Path, config: TimmConfig) -> Network:
    with _openable(path):
        return torch.export.load(path).module()


def _write_onnx(model: SENet, path: Path) -> None:
    with _quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(_EXAMPLE),),
            dynamo=True,
            dynamic_shapes=_DYNAMIC,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
    shutil.copyfile(Path(__file__).with_name("run_onnx.py"), path.with_name("run.py"))


def _open_onnx(path: Path, config: TimmConfig) -> Network:
    with extra("export"):
        import onnxruntime
    with _openable(path):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@contextmanager
def _openable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Damaged files lead to errors of many kinds.
        raise CheckpointError(f"{shown_path(path)} cannot be opened: {printable(error)}; export again") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Stop warnings of torch in this block: torch reports that sympy cannot solve the sizes of the stem's pooling."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


KINDS = {
    "weights": Kind("weights in safetensors", "model.safetensors", _write_weights, _open_weights),
    "hub": Kind("a folder for timm and the Hugging Face Hub", "model.safetensors", _write_weights, _open_weights),
    "onnx": Kind("ONNX, with a program that needs no torch", "model.onnx", _write_onnx, _open_onnx, _ONNX_PACKAGES),
    "exported": Kind("a program of torch.export", "model.pt2", _write_exported, _open_exported),
    "folded": Kind("weights with BatchNorm folded", "model.safetensors", _write_folded, _open_folded),
}
