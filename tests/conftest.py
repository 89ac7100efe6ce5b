"""Options and fixtures for all tests: image folders, and processes that never outlive a test.

`run_command`, `start_command`, `run_world` and `torchrun` start process trees. torchrun starts each worker in a new
session, so a process group does not hold a tree together. An environment variable that each descendant inherits does.
"""

import argparse
import gc
import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import launcher
import numpy as np
import pytest
from launcher import Result
from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGENET_SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample.tar"
TREE_MARK = "SERESNEXT_TEST_TREE"
_BUSY = 3  # A busy machine needs so many times the seconds that a test gives a command.
# Markers of tests that run only if the option of the same name is given, and the reason for the skip.
ON_REQUEST = {"gpu": "needs a CUDA device", "full": "takes long"}


# A busy machine would exceed the usual deadline of 200 ms for an example.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, why in ON_REQUEST.items():
        parser.addoption(f"--{name}", action="store_true", help=f"also run the tests marked {name} ({why})")
    parser.addoption("--shard", type=_shard, metavar="I/N", help="run part I of N parts of the test files")


def _shard(text: str) -> tuple[int, int]:
    part, _, count = text.partition("/")
    if not (part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N, such as 2/4")
    return int(part), int(count)


def pytest_sessionstart() -> None:
    """Take signals as the program of a terminal does, also in processes that the tests start.

    A shell lets a background job ignore Ctrl-C, and `nohup` lets a program ignore a closed terminal.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, why in ON_REQUEST.items():
        if not config.getoption(f"--{name}"):
            skip = pytest.mark.skip(reason=f"{why}: bash scripts/test.sh --{name} runs it")
            for item in items:
                if name in item.keywords:
                    item.add_marker(skip)
    if shard := config.getoption("--shard"):
        part, count = shard
        # A file stays whole, since tests of a file share fixtures. Neighbours, which cost alike, go to different parts.
        files = dict.fromkeys(item.nodeid.partition("::")[0] for item in items)
        chosen = set(list(files)[part - 1 :: count])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid.partition("::")[0] not in chosen])
        items[:] = [item for item in items if item.nodeid.partition("::")[0] in chosen]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from scanning the imported modules, which takes half a second each time."""
    gc.freeze()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `condition()` holds. Fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def needs(is_there: bool, reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test on a machine that cannot run the test. In CI the test runs, and fails."""
    return pytest.mark.skipif(not is_there and not in_ci(), reason=reason)


def in_ci() -> bool:
    """Return whether this machine runs continuous integration; all of these machines set the variable."""
    return os.environ.get("CI") == "true"


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace the temporary folder of the system: killed processes leave files there. torch's cache stays."""
    folder, cache = str(tmp_path_factory.mktemp("tmp")), f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", cache))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Replace the cache folder of the user, so that no test leaves an index in the real folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`without(package)` lets a package look as if it were not installed."""
    find = importlib.util.find_spec
    return lambda package: monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )


# ------------------------------------------------------------------------------------------------ processes


class Command:
    """A running process tree. Two files keep the output."""

    def __init__(self, argv: Sequence[str | Path], folder: Path, env: Mapping[str, str], cwd: Path) -> None:
        self._argv = [str(word) for word in argv]
        self._mark = uuid.uuid4().hex
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        self._start = time.monotonic()
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = launcher.start(self._argv, out, err, {**env, TREE_MARK: self._mark}, cwd)

    @property
    def output(self) -> str:
        return "".join(self._texts())

    def alive(self) -> list[int]:
        """Return the ids of all running processes of this tree, also of processes that another process adopted."""
        found = [self.process.pid] if self.process.poll() is None else []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in found:
                try:
                    if self._is_ours(entry) and "\nState:\tZ" not in (entry / "status").read_text():
                        found.append(int(entry.name))
                except OSError:  # The process has ended, or belongs to another user.
                    continue
        return found

    def _is_ours(self, process: Path) -> bool:
        """Return whether a process belongs to this tree: by the first environment, or by stderr.

        For a fork, /proc shows the environment of the process that forked.
        """
        return (
            f"{TREE_MARK}={self._mark}".encode() in (process / "environ").read_bytes()
            or (process / "fd" / "2").readlink() == self._stderr
        )

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until `condition()` holds. Fail if the command ends first, or after `_BUSY * timeout` seconds."""
        deadline = time.monotonic() + _BUSY * timeout
        while not condition():
            if (code := self.process.poll()) is not None and not condition():
                self._fail(f"ended with {code} before the condition held")
            if time.monotonic() > deadline:
                self._fail(f"the condition did not hold within {_BUSY * timeout} s")
            time.sleep(0.05)

    def finish(self, timeout: float = 120, grace: float = 10) -> Result:
        """Wait for the end. Fail after `_BUSY * timeout` seconds, or if a process is left `grace` seconds later."""
        try:
            returncode = self.process.wait(_BUSY * timeout)
        except subprocess.TimeoutExpired:
            self._fail(f"still ran after {_BUSY * timeout} s")
        seconds = time.monotonic() - self._start
        deadline = time.monotonic() + grace
        while (orphans := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if orphans:
            self._fail(f"ended with {returncode} and left processes {orphans}")
        return Result(returncode, *self._texts(), seconds)

    def kill(self) -> None:
        while pids := self.alive():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        self.process.wait()

    def _texts(self) -> list[str]:
        return [file.read_text(errors="replace") for file in (self._stdout, self._stderr)]

    def _fail(self, problem: str) -> NoReturn:
        pytest.fail(f"{' '.join(self._argv)}: {problem}:\n{self.output}")


def command(*words: object) -> int:
    """Run a command of `seresnext` in this process, and return the exit code."""
    from seresnext.cli import main
    from seresnext.process.signals import StopRequest

    return main([*map(str, words)], StopRequest())


StartCommand = Callable[..., Command]
RunCommand = Callable[..., Result]


@pytest.fixture
def start_command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCommand]:
    """`start_command(argv, env={}, cwd=project root) -> Command`; the end of the test kills the tree.

    Children see a CUDA device only if the test is marked `gpu`, use one thread, and none of the user's own packages.
    """
    commands: list[Command] = []
    children = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    if "gpu" not in request.keywords:
        children["CUDA_VISIBLE_DEVICES"] = ""

    def start(argv: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Command:
        commands.append(Command(argv, tmp_path_factory.mktemp("command"), {**children, **(env or {})}, cwd))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


def _finishing(start: StartCommand, usual: float) -> RunCommand:
    def run(*words: Any, timeout: float = usual, **options: Any) -> Result:
        return start(*words, **options).finish(timeout)

    return run


@pytest.fixture
def run_command(start_command: StartCommand) -> RunCommand:
    """`run_command(argv, timeout=120, env={}, cwd=project root) -> Result`. Fails on a timeout or an orphan."""
    return _finishing(start_command, 120)


@pytest.fixture
def start_world(start_command: StartCommand) -> StartCommand:
    """`start_world(nproc, args, options=[], env={}, cwd=project root) -> Command`: `args` on `nproc` local processes.

    The processes have the environment of torchrun's workers and cost less. Tests of torchrun use `start_torchrun`.
    `options`: `--shutdown-timeout=SECONDS`.
    """

    def start(nproc: int, args: Sequence[str | Path], options: Sequence[str] = (), **start_options: Any) -> Command:
        return start_command([launcher.WORLD, f"--nproc_per_node={nproc}", *options, *args], **start_options)

    return start


@pytest.fixture
def run_world(start_world: StartCommand) -> RunCommand:
    """`run_world(nproc, args, timeout=180, options=[], env={}, cwd=project root) -> Result`, like `run_command`."""
    return _finishing(start_world, 180)


@pytest.fixture
def start_torchrun(start_command: StartCommand) -> StartCommand:
    """`start_torchrun(nproc, args, launch=["--standalone"], env={}, cwd=project root) -> Command`: PyTorch's torchrun.

    `launch` are options of torchrun. `--standalone` picks a free port, so that runs at the same time do not clash.
    """

    def start(
        nproc: int,
        args: Sequence[str | Path],
        launch: Sequence[str] = ("--standalone",),
        torchrun: str = launcher.TORCHRUN,
        **options: Any,
    ) -> Command:
        words = [launcher.PYTHON, "-m", torchrun, *launch, f"--nproc_per_node={nproc}"]
        return start_command([*words, *args], **options)

    return start


@pytest.fixture
def torchrun(start_torchrun: StartCommand) -> RunCommand:
    """`torchrun(nproc, args, timeout=180, env={}, cwd=project root) -> Result`, like `run_command`."""
    return _finishing(start_torchrun, 180)


# ------------------------------------------------------------------------------------------------ images


@pytest.fixture(scope="session")
def imagenet_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 real ImageNet photographs of 500 classes, as `train` and again as `val`. Tests must not change the folder."""
    if not IMAGENET_SAMPLE.exists():
        pytest.skip(f"needs {IMAGENET_SAMPLE}, which is not part of the project")
    root = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(IMAGENET_SAMPLE) as tar:
        tar.extractall(root, filter="data")
    (root / IMAGENET_SAMPLE.stem).rename(root / "train")
    shutil.copytree(root / "train", root / "val", copy_function=os.link)
    return root


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder of the demo. Tests must not change the folder."""
    from seresnext.prepare.folders import write_digits

    root = tmp_path_factory.mktemp("digits") / "digits"
    write_digits(root)
    return root


@pytest.fixture(scope="session")
def tiny_image_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_image_folder(classes=3, per_class=8, size=40, val_per_class=4) -> root` with `train` and `val`.

    Each JPEG is a gradient with noise; the class gives the direction and the colour, so a model can learn the classes.
    The same arguments give the same folder within a session. A test that changes images copies the folder first.
    """

    @cache
    def make(classes: int, per_class: int, size: int, val_per_class: int) -> Path:
        root = tmp_path_factory.mktemp("images")
        for split, count in (("train", per_class), ("val", val_per_class)):
            for label in range(classes):
                folder = root / split / f"class_{label}"
                folder.mkdir(parents=True)
                for number in range(count):
                    rng = np.random.default_rng([label, number, len(split)])
                    _gradient(label, classes, size, rng).save(folder / f"{number}.jpg", quality=90)
        return root

    return lambda classes=3, per_class=8, size=40, val_per_class=4: make(classes, per_class, size, val_per_class)


def _gradient(label: int, classes: int, size: int, rng: np.random.Generator) -> Image.Image:
    angle = np.pi * label / classes
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    slope = np.cos(angle) * x + np.sin(angle) * y
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (label / classes + np.array([0, 1 / 3, 2 / 3])))
    pixels = 128 + 60 * slope[..., None] * colour + rng.normal(0, 20, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
