"""A checkpoint with weights of timm's network, and the exports of the checkpoint."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from exports import CLASSES, SETTINGS, make_oracle, run
from photographs import photo

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.recipe.load import load_recipe, to_values


@pytest.fixture(scope="session")
def oracles() -> dict[str, torch.nn.Module]:
    """The networks of timm whose weights are `model` and `ema` in the checkpoint."""
    return {name: make_oracle("legacy_seresnext26_32x4d", seed) for seed, name in enumerate(("model", "ema"))}


@pytest.fixture(scope="session")
def write_checkpoint(
    oracles: dict[str, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`write_checkpoint(*settings) -> folder`: a run folder with a checkpoint of a recipe with these settings."""

    def write(*settings: str) -> Path:
        recipe = to_values(load_recipe("digits", [*SETTINGS, *settings]).recipe)
        dataset = {"classes": CLASSES, "num_images": 5, "fingerprint": ""}
        metadata = CheckpointMetadata(
            7, recipe, recipe_hash="", best=None, history=[], dataset=dataset, environment={}, progress={}
        )
        folder = tmp_path_factory.mktemp("run")
        tensors = {f"{kind}.{name}": value for kind in oracles for name, value in oracles[kind].state_dict().items()}
        store.commit(folder / "checkpoints", 7, tensors, metadata.to_metadata()).rename(
            folder / "checkpoints" / "best.safetensors"
        )
        return folder

    return write


@pytest.fixture(scope="session")
def checkpoint(write_checkpoint: Callable[..., Path]) -> Path:
    """A run folder with a checkpoint."""
    return write_checkpoint()


@pytest.fixture(scope="session")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """`export(kind) -> folder`: the export of the checkpoint. Tests must not change the folder."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("exports")

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = root / kind
            assert run("export", "--checkpoint", checkpoint, "--to", kind, "--output", made[kind]) == 0
        return made[kind]

    yield make
    shutil.rmtree(root)


@pytest.fixture
def copy(export: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copy(kind) -> folder`: a copy of links. A test replaces files, and does not write into files."""
    return lambda kind: Path(shutil.copytree(export(kind), tmp_path / kind, copy_function=os.link))


@pytest.fixture
def words(checkpoint: Path, tmp_path: Path) -> list[object]:
    """The words of an export to a new folder."""
    return ["export", "--checkpoint", checkpoint, "--to", "weights", "--output", tmp_path / "new"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with two images."""
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "zoo secret.JPG").write_bytes(photo(1, size=90))
    (tmp_path / "photographs" / "ants.png").write_bytes(photo(2, "PNG", size=90))
    return tmp_path / "photographs"
