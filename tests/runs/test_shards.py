"""Training and validation of whole processes from shards, on a disk and from a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import launcher
import pytest
from bad_checkpoints import write_checkpoint
from launcher import PYTHON
from run_folders import last_tensors, losses
from shard_folders import Server, serve

pytestmark = [pytest.mark.runs, pytest.mark.narrow]

ROOT = Path(__file__).parents[2]
WORDS = ("--set", "data.format=shards", "--set", "data.shuffle_shards=2", "--set", "length=6st")


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in shards of four."""
    root = tmp_path_factory.mktemp("shards")
    command = [ROOT / "seresnext" / "__main__.py", "prepare", "shards"]
    options = ["--output", root, "--images-per-shard", "4", "--cache", root / "cache"]
    launcher.complete(1, [*command, images, *options])
    return root


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with serve(shards) as running:
        yield running


@pytest.fixture(scope="module")
def trained(module_train, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the local shards."""
    return module_train(tmp_path_factory.mktemp("trained") / "run", *WORDS, "--data", str(shards))


@pytest.mark.parametrize("world", [1, 2])
def test_a_server_trains_as_the_folder_does(trained: Path, server: Server, train, tmp_path: Path, world: int):
    """Through a cache that holds 5 of 6 training shards, cold at first and warm then."""
    size = max(path.stat().st_size for path in (server.folder / "train").glob("*.tar"))
    cache = ("--set", f"data.cache={tmp_path / 'cache'}", "--set", f"data.cache_size={5 * size / 1e9}")
    for state in ("cold", "warm")[: 3 - world]:
        run = train(tmp_path / state, *WORDS, *cache, "--data", server.url, world=world)
        assert losses(run) == pytest.approx(losses(trained), rel=1e-9 if world > 1 else 0, abs=0)
        if world == 1:
            ours, theirs = last_tensors(run), last_tensors(trained)
            assert all(ours[name].equal(theirs[name]) for name in ours)
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "shards").glob("*.tar")) <= 5 * size


def test_another_order_is_another_run(trained: Path, shards: Path, train, tmp_path: Path):
    other = train(tmp_path / "run", *WORDS, "--set", "data.shuffle_shards=null", "--data", str(shards))
    assert losses(other) != losses(trained)


def test_a_run_goes_on_from_the_folder_to_a_server(trained: Path, server: Server, train, tmp_path: Path):
    """The place of the shards and the size of the cache change no number, so no permission is needed."""
    checkpoint = str(trained / "checkpoints" / "step-00000004.safetensors")
    words = ("--set", f"data.cache={tmp_path}", "--set", "data.cache_size=1.0", "--resume", checkpoint)
    run = train(tmp_path / "run", *WORDS, *words, "--data", server.url)
    assert losses(run) == losses(trained)[4:]


def test_a_checkpoint_is_validated_on_a_server(
    untrained, metadata, server: Server, shards: Path, run_command, tmp_path: Path
):
    found = []
    checkpoint = write_checkpoint(tmp_path / "checkpoint.safetensors", untrained, metadata)
    for number, data in enumerate((str(shards), server.url)):
        report = tmp_path / f"{number}.json"
        argv = ["validate.py", "--checkpoint", checkpoint, "--data", data, "--json", report]
        env = {"XDG_CACHE_HOME": str(tmp_path / "home")}
        result = run_command([PYTHON, *argv], env=env)
        assert result.returncode == 0, result.output
        found.append(json.loads(report.read_text()))
    assert found[0]["loss"] == found[1]["loss"]
    assert found[0]["num_images"] == 13


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--set", "data.shuffle_shards=null", "--set", "data.cache_size=0.00005"), 3, "data.shuffle_shards to"),
        (("--data", "https://ann:secret@host/x"), 2, "data.root"),
    ],
)
def test_mistakes_are_told(server: Server, train_arguments, run_command, tmp_path: Path, words, code, message):
    arguments = train_arguments(tmp_path / "run", *WORDS, "--set", f"data.cache={tmp_path}", "--data", server.url)
    result = run_command([PYTHON, *arguments, *words])
    assert result.returncode == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output
