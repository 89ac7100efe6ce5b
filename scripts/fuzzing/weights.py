"""Readers of weights: checkpoints with and without a recomputed digest, safetensors files, files of torch."""

import functools
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from fuzzing.formats import mutate_safetensors, mutate_signed, mutate_torch_old, mutate_torch_zip
from fuzzing.harness import Files, Reader, WrongResult, bytes_of, of_one_file
from fuzzing.mutations import mutate_bytes
from torch import Tensor, nn
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from seresnext.checkpoint import file_format, store
from seresnext.checkpoint.contents import CheckpointMetadata, check_fits, load_scaler_state, restore
from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, UsageError
from seresnext.metrics.console import Console, describe
from seresnext.models import SENet, load_pretrained, pretrained
from seresnext.recipe.load import recipe_from_values, to_values
from seresnext.recipe.show import recipe_hash
from seresnext.run.resume import check_compatible, find_checkpoint, restored_progress, rewind_folder
from seresnext.run.validate import read_subject
from seresnext.training.plan import Plan, Progress

CLASSES = ["ant", "bee", "cat"]
STEP = 8


class StandIn(SENet):
    """A small model with the tensors from which `identify_model` identifies an SE-ResNeXt-26."""

    def __init__(self, num_classes: int = len(CLASSES), in_channels: int = 3) -> None:
        nn.Module.__init__(self)
        self.num_classes, self.in_channels, self.stem_pool, self._frozen = num_classes, in_channels, "ceil", ()
        stem, squeeze = nn.Conv2d(in_channels, 64, 7, bias=False), nn.Conv2d(256, 16, 1)
        grouped = nn.Conv2d(128, 128, 3, groups=32, bias=False)
        first = nn.Sequential(OrderedDict(conv2=grouped, se_module=nn.Sequential(OrderedDict(fc1=squeeze))))
        self.layer0 = nn.Sequential(OrderedDict(conv1=stem, bn1=nn.BatchNorm2d(64)))
        self.layer1 = nn.Sequential(first, nn.BatchNorm2d(2))
        self.layer2 = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
        self.layer3 = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
        self.layer4 = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
        self.last_linear = nn.Linear(2048, num_classes)


@functools.cache
def _run() -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """Return the tensors of a run by part, the recipe and the dataset, in the form of a checkpoint."""
    torch.manual_seed(0)
    model, average = StandIn(), StandIn()
    momenta = {name: torch.ones_like(tensor) for name, tensor in model.named_parameters()}
    scaler = {"scale": torch.tensor(65536.0, dtype=torch.float64), "growth_tracker": torch.tensor(3)}
    parts = {
        "model": dict(model.state_dict()),
        "ema": dict(average.state_dict()),
        "optimizer.momentum": momenta,
        "scaler": scaler,
    }
    values = {
        "model": {"name": "seresnext26", "num_classes": len(CLASSES)},
        "data": {"image_size": 32, "workers": 1},
        "batch": {"global_size": 4, "micro_size": 2},
        "length": "40st",
        "optimizer": {"lr": 0.01},
        "ema": {"decay": 0.9},
        "evaluation": {"weights": "ema"},
        "runtime": {"precision": "fp32"},
    }
    dataset = {"classes": CLASSES, "num_images": 12, "fingerprint": "f" * 64}
    return parts, to_values(recipe_from_values(values, "the seed")), dataset


def _signed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header, order = file_format.header(tensors, metadata)
    content = header + b"".join(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in order)
    digest = file_format.hashlib.sha256(content).hexdigest()
    return content.replace(b"0" * 64, digest.encode(), 1)


@functools.cache
def _checkpoints() -> list[Files]:
    """Return checkpoints of a run: one with everything that a run can record, and one with little."""
    parts, values, dataset = _run()
    best = {"step": STEP, "top1": 50.0, "top5": 100.0, "weights": "ema"}
    skipped = {"step": 3, "reason": "the loss is nan", "samples": ["train/ant/1.jpg"]}
    environment = {"command": ["train.py"], "host": "a", "packages": {"torch": "2"}, "world_size": 1, "threads": 1}
    found = []
    for has_all in (True, False):
        progress = Progress(STEP, STEP, best if has_all else None, 1.5, 2, 1, history=[skipped] if has_all else [])
        said = {name: value for name, value in asdict(progress).items() if name != "history"}
        recipe = (
            values if has_all else {**values, "ema": None, "evaluation": {**values["evaluation"], "weights": "model"}}
        )
        hashed = recipe_hash(recipe)
        facts = CheckpointMetadata(STEP, recipe, hashed, progress.best, progress.history, dataset, environment, said)
        kept = parts if has_all else {**parts, "ema": {}, "scaler": {}}
        tensors = {f"{part}.{name}": tensor for part, named in kept.items() for name, tensor in named.items()}
        found.append({"step-00000008.safetensors": _signed(tensors, facts.to_metadata())})
    return found


# ------------------------------------------------------------------------------------------------ checkpoints


def _read_whole(folder: Path, files: Files) -> None:
    """Read a checkpoint. If any byte differs from the seed, the digest is wrong and the file must be refused."""
    ((name, data),) = files.items()
    tensors, metadata = store.read(folder / name)
    if data not in [seed[name] for seed in _checkpoints()]:
        raise WrongResult("a checkpoint with other bytes than were saved is accepted")
    CheckpointMetadata.from_metadata(metadata, name)
    _check_numbers(tensors)


def _resume(folder: Path, files: Files) -> None:
    """Resume from a checkpoint as a training does, up to the next lines and the next save."""
    parts, values, dataset = _run()
    world, console = World(), Console(enabled=True)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    (name,) = files
    (folder / name).rename(checkpoints / name)
    saved = find_checkpoint(checkpoints, "auto", world, console.print)
    if saved is None:
        raise WrongResult("the checkpoint is not found")
    progress = restored_progress(saved)
    of_seed = {name: saved.metadata.recipe.get(name) for name in ("ema", "evaluation")}
    check_compatible(saved, recipe_from_values({**values, **of_seed}, "the seed"), dataset, ())
    if not any(name.startswith("ema.") for name in saved.tensors):
        parts = {**parts, "ema": {}, "scaler": {}}
    live = {part: {name: tensor.clone() for name, tensor in named.items()} for part, named in parts.items()}
    check_fits(saved.tensors, live, str(saved.path))
    progress.best = rewind_folder(saved, checkpoints, world, console.print)
    restore(saved.tensors, live)
    load_scaler_state(torch.amp.GradScaler("cpu"), live["scaler"])
    _check_numbers({f"{part}.{name}": tensor for part, named in live.items() for name, tensor in named.items()})
    plan = Plan(40, 3, 5, 10, 10, 4, patience=20)
    plan.is_complete(progress)
    loss = progress.unlogged_loss / progress.unlogged_steps if progress.unlogged_steps else None
    event = {"event": "train", "step": progress.step, "epoch": progress.step / plan.steps_per_epoch, "loss": loss}
    console.print(describe({**event, **(progress.best or {})}))
    carried = {name: value for name, value in asdict(progress).items() if name != "history"}
    facts = CheckpointMetadata(progress.step, values, "", progress.best, progress.history, dataset, {}, carried)
    facts.to_metadata()


def _check_numbers(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WrongResult(f"{name} with values that are not finite is accepted")
        if name.endswith("running_var") and (tensor < 0).any():
            raise WrongResult(f"{name} with negative values is accepted")


# ------------------------------------------------------------------------------------------------ weights


def _validate(folder: Path, files: Files) -> None:
    """Read a file of weights as validate.py does, up to the model that is measured."""
    (name,) = files
    subject, recipe = read_subject(folder / name, None, World())
    model = StandIn(recipe.model.num_classes, recipe.model.in_channels)
    subject.load_into(model)
    _check_numbers(model.state_dict())
    if subject.classes is not None:
        json.dumps(subject.classes).encode()


def _load(folder: Path, files: Files) -> None:
    """Read a file of weights as `load_pretrained` does."""
    (name,) = files
    with patch.object(pretrained, "create_model", lambda _, classes, channels, rate: StandIn(classes, channels)):
        model, preprocessing = load_pretrained(folder / name)
    _check_numbers(model.state_dict())
    asdict(preprocessing)


def _bare() -> dict[str, Tensor]:
    parts, _, _ = _run()
    return {name: tensor.clone() for name, tensor in parts["model"].items()}


def _safetensors() -> list[Files]:
    wrapped = {f"module.{name}": tensor for name, tensor in _bare().items()}
    found = [safetensors.torch.save(_bare()), safetensors.torch.save(wrapped, {"format": "pt"})]
    return [{"w.safetensors": data} for data in (*found, *_checkpoints()[0].values())]


def _files_of_torch(save: Callable[[Any], bytes]) -> list[Files]:
    return [{"w.pth": save(state)} for state in (_bare(), {"state_dict": _bare(), "epoch": 3})]


def _torch_zip(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _torch_old(value: Any) -> bytes:
    """Return a file in the format before torch 1.6. torch.save names storages by address, and its files differ."""
    storages: list[Any] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> tuple | None:
            if not isinstance(item, torch.storage.TypedStorage):
                return None
            storages.append(item)
            kind = getattr(torch, item._pickle_storage_type())
            return "storage", kind, f"{len(storages):03}", "cpu", item._size(), None

    buffer = io.BytesIO()
    for start in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}):
        pickle.dump(start, buffer, 2)
    Pickler(buffer, 2).dump(value)
    pickle.dump([f"{number:03}" for number in range(1, len(storages) + 1)], buffer, 2)
    for storage in storages:
        buffer.write(storage._size().to_bytes(8, "little") + bytes(storage._untyped_storage.tolist()))
    return buffer.getvalue()


def _mutate_weights(draws: Random, files: Files, other: Files) -> Files:
    """Damage a checkpoint and recompute the digest, or damage another safetensors file."""
    data = bytes_of(files, "w.safetensors")
    mutate = mutate_signed if b'"digest"' in data[:40] else mutate_safetensors
    return {"w.safetensors": mutate(draws, data, bytes_of(other, "w.safetensors"))}


READERS = {
    "checkpoint": Reader(_checkpoints, of_one_file(mutate_bytes), _read_whole, (CheckpointError,)),
    "resume": Reader(_checkpoints, of_one_file(mutate_signed), _resume, (CheckpointError, UsageError, DataError)),
    "validate": Reader(_safetensors, _mutate_weights, _validate, (CheckpointError,)),
    "safetensors": Reader(_safetensors, of_one_file(mutate_safetensors), _load, (CheckpointError,)),
    "pth": Reader(lambda: _files_of_torch(_torch_zip), of_one_file(mutate_torch_zip), _load, (CheckpointError,)),
    "old_pth": Reader(lambda: _files_of_torch(_torch_old), of_one_file(mutate_torch_old), _load, (CheckpointError,)),
}
