"""A save that is interrupted: a folder with an old state, the save of a new state, and checks of the result."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.training.saving import Saver

OLD_BEST, OLD, NEW = 3, 4, 8
_DATASET = {"classes": ["a"], "num_images": 1, "fingerprint": ""}
_PR_SET_PTRACER, _ANY_PROCESS = 0x59616D61, ctypes.c_ulong(-1)  # linux/prctl.h


def tensors_of(step: int) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), float(step)), "count": torch.tensor(step)}


def save(folder: Path, *steps: int, best: int | None = None) -> None:
    """Save steps in their order, as a run that keeps one checkpoint does. `best` is the step of the best validation."""
    current = 0
    saver = Saver(
        World(),
        folder,
        tensors=lambda: {"model": tensors_of(current)},
        metadata=lambda step, progress: CheckpointMetadata(step, {}, "", progress["best"], [], _DATASET, {}, progress),
        warn=print,
        keep=1,
    )
    with saver:
        for current in steps:
            saver.wait()
            saver.save(current, {"best": {"step": best, "top1": float(best)} if best else None})
        saver.finish()


def make_old(folder: Path) -> None:
    """Make the state before the save: the newest checkpoint, and an older checkpoint that is kept as the best."""
    save(folder, OLD_BEST, best=OLD_BEST)
    save(folder, OLD, best=OLD_BEST)


def save_new(folder: Path) -> None:
    """Save the new state, which is also the new best. The save removes the old best."""
    save(folder, NEW, best=NEW)


def step_in(path: Path) -> int:
    """Return the step of a checkpoint. Fail unless the file is whole and has the tensors of that step."""
    tensors, metadata = store.read(path)
    facts = CheckpointMetadata.from_metadata(metadata, str(path))
    for name, tensor in tensors_of(facts.step).items():
        assert torch.equal(tensors[f"model.{name}"], tensor)
    return facts.step


def assert_sound(folder: Path) -> int:
    """Check that the old or the new checkpoint exists, and that no file of the folder is damaged.

    Returns the step that a run would resume from.
    """
    for path in [*store.steps(folder).values(), *folder.glob("last.safetensors"), *folder.glob("best.safetensors")]:
        step_in(path)
    newest = store.newest_valid(folder)
    assert newest.warnings == []
    assert newest.path
    found = step_in(newest.path)
    assert found in (OLD, NEW)
    assert step_in(folder / "last.safetensors") in (OLD, found)
    assert step_in(folder / "best.safetensors") in (OLD_BEST, found)
    return found


def assert_next_save_mends(folder: Path) -> None:
    """Check that the next run and its save leave the same files as an uninterrupted save."""
    store.remove_temporary(folder)
    save_new(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        f"step-{NEW:08}.safetensors",
    ]
    assert {step_in(path) for path in folder.iterdir()} == {NEW}


class Child:
    """A forked process that waits for `go` and then runs the action."""

    def __init__(self, action: Callable[[], object]) -> None:
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY_PROCESS, 0, 0, 0)
                os.read(reader, 1)
                action()
                os._exit(0)
            finally:
                os._exit(1)
        os.close(reader)

    def go(self) -> int:
        """Start the action and wait for the end. Returns the exit code, negative for a signal."""
        os.write(self._writer, b"!")
        os.close(self._writer)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
