"""Training of whole processes from shards, on a disk and from a server, and from ImageNet's archives."""

from collections.abc import Iterator
from pathlib import Path

import launcher
import pytest
from imagenet_archives import extract, write_archives
from run_folders import differences, lines, losses
from shard_folders import Server, serve

pytestmark = pytest.mark.runs

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
def trained(train, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "run", *WORDS, "--data", str(shards))


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 2])
def test_a_server_trains_as_the_folder_does(trained: Path, server: Server, train, tmp_path: Path, world: int):
    """With an empty cache at first, and a full one then."""
    cache = ("--set", f"data.cache={tmp_path / 'cache'}")
    for state in ("empty", "full")[: 3 - world]:
        run = train(tmp_path / state, *WORDS, *cache, "--data", server.url, world=world)
        assert losses(run) == pytest.approx(losses(trained), rel=1e-9 if world > 1 else 0, abs=0)
        if world == 1:
            assert (lines(run), differences(run, trained)) == (lines(trained), [])
    assert {count for name, count in server.requests.items() if name.endswith(".tar")} == {1}


def test_another_order_is_another_run(trained: Path, shards: Path, train, tmp_path: Path):
    other = train(tmp_path / "run", *WORDS, "--set", "data.shuffle_shards=null", "--data", str(shards))
    assert losses(other) != losses(trained)


def test_archives_train_as_the_extracted_folder_does(train, tmp_path: Path):
    archives = write_archives(tmp_path / "archives", per_class=6)
    roots = {"imagenet": archives, "folder": extract(archives, tmp_path / "extracted")}
    words = ("--set", "model.num_classes=4", "--set", "length=4st")
    one, other = (
        train(tmp_path / form, *words, "--set", f"data.format={form}", "--data", str(root))
        for form, root in roots.items()
    )
    assert lines(one) == lines(other)
    assert differences(one, other) == []
