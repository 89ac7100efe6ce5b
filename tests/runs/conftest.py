"""A recipe small enough that whole processes train in seconds."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import bad_checkpoints
import launcher
import pytest
import resource_probe
from faults import Fault, Faults
from resource_probe import Probe, ProbeResult
from run_folders import digest, status
from torch import Tensor

from seresnext.checkpoint import store

ROOT = Path(__file__).parents[2]
# train.py with the requested faults, and with a narrow network: a checkpoint has a hundredth of the bytes.
NARROW = str(ROOT / "tests" / "faults.py")
RECIPE = """
model: {name: seresnext26, num_classes: 3, drop_rate: 0.2}
data: {image_size: 32, workers: 1}
augment: {crop_scale: [0.5, 1.0]}
batch: {global_size: 8, micro_size: 4}
length: 8st
optimizer: {lr: 0.002}
schedule: {name: cosine, warmup: 2st}
ema: {decay: 0.9}
evaluation: {every: 4st}
checkpoint: {every: 4st, keep: 10}
logging: {every: 1st}
runtime: {precision: fp64}
"""


@pytest.fixture(scope="session")
def images(tiny_image_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 24 training images, and 13 validation images, which 3 ranks do not divide."""
    root = tmp_path_factory.mktemp("images") / "root"
    shutil.copytree(tiny_image_folder(classes=3, per_class=8, size=40, val_per_class=4), root)
    extra = root / "val" / "class_0" / "extra.jpg"
    extra.write_bytes((root / "train" / "class_0" / "0.jpg").read_bytes())
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def train_arguments(recipe: Path, images: Path) -> Callable[..., list[str]]:
    """`train_arguments(output, *more) -> [...]`: the arguments of a run of the tiny recipe, the program first."""

    def arguments(output: Path, *more: str) -> list[str]:
        return [NARROW, "--recipe", str(recipe), "--data", str(images), "--output", str(output), *more]

    return arguments


@pytest.fixture(scope="session")
def train(train_arguments: Callable[..., list[str]]) -> Callable[..., Path]:
    """`train(output, *more, world=1) -> output`: train the tiny recipe; the exit code must be 0."""

    def run(output: Path, *more: str, world: int = 1) -> Path:
        launcher.complete(world, train_arguments(output, *more))
        return output

    return run


# ------------------------------------------------------------------------------------------------ faults

SMALL = ("--set", "runtime.precision=fp32", "--set", "evaluation.batch_size=2")  # Half the bytes to write; 7 batches.


@pytest.fixture
def narrow_arguments(train_arguments: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """`narrow_arguments(output, *more) -> [...]`: the arguments of a run with faults, the program first."""

    return lambda output, *more: train_arguments(output, *SMALL, *more)


@pytest.fixture(scope="session", autouse=True)
def no_faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give tests/faults.py an empty list of faults, unless a test has another."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in Faults(tmp_path_factory.mktemp("no-faults"), ()).environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def start_faulty(
    start_command: Any,
    start_world: Any,
    start_torchrun: Any,
    narrow_arguments: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Any, Faults]]:
    """`start_faulty(output, *faults, world=2, more=[], options=[], launch=[], prefix=[]) -> Command, Faults`.

    `more` are arguments of train.py, `options` of `start_world`, `launch` of torchrun, `prefix` starts a
    world of one. The run has torchrun if `launch` is given or a fault meets torchrun. The run has new processes if a
    fault comes before the import of torch, since a fork has imported torch.
    """

    def start(
        output: Path,
        *faults: Fault,
        world: int = 2,
        more: Sequence[str] = (),
        options: Sequence[str] = (),
        launch: Sequence[str] = (),
        prefix: Sequence[str] = (),
        **start_options: Any,
    ) -> tuple[Any, Faults]:
        injected = Faults(tmp_path_factory.mktemp("faults"), faults)
        arguments = narrow_arguments(output, *more)
        start_options["env"] = {**injected.environment, **start_options.get("env", {})}
        is_new = any(fault.at == "import" for fault in faults)
        if launch or any(fault.do.startswith("torchrun:") for fault in faults) or (is_new and world > 1):
            return start_torchrun(world, arguments, launch=["--standalone", *launch], **start_options), injected
        if world > 1:
            return start_world(world, arguments, options=options, **start_options), injected
        python = sys.executable if prefix or is_new else launcher.PYTHON
        return start_command([*prefix, python, *arguments], **start_options), injected

    return start


@pytest.fixture
def faulty(start_faulty: Any) -> Callable[..., Any]:
    """`faulty(output, *faults, timeout=120, world=2, ...) -> Result`: a run whose faults all happen."""

    def run(output: Path, *faults: Fault, timeout: float = 120, **options: Any) -> Any:
        command, injected = start_faulty(output, *faults, **options)
        result = command.finish(timeout)
        assert [fault for number, fault in enumerate(faults) if not injected.happened(number)] == [], result.output
        return result

    return run


@pytest.fixture(scope="session")
def whole_digest(recipe: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`whole_digest(world, *more) -> digest` of an undisturbed run of the same program."""

    @cache
    def get(world: int, *more: str) -> str:
        output = tmp_path_factory.mktemp("whole") / "run"
        launcher.complete(world, [NARROW, "--recipe", recipe, "--data", images, "--output", output, *SMALL, *more])
        return digest(output)

    return get


@pytest.fixture
def run_again(faulty: Callable[..., Any]) -> Callable[..., Any]:
    """`run_again(run, *more, world=1) -> Result`: the command of a faulty run again, without faults."""
    return lambda output, *more, world=1: faulty(output, world=world, more=more)


@pytest.fixture
def assert_resumes(run_again: Callable[..., Any], whole_digest: Callable[..., str]) -> Callable[..., None]:
    """`assert_resumes(run, world=2, *more)`: the newest checkpoint is valid; the resumed run has the same digest."""

    def check(run: Path, world: int = 2, *more: str) -> None:
        newest = store.newest_valid(run / "checkpoints")
        assert newest.warnings == []
        if newest.path:
            store.read(newest.path)
        result = run_again(run, *more, world=world)
        assert (result.returncode, status(run)["state"]) == (0, "finished"), result.output
        assert digest(run) == whole_digest(world, *more)

    return check


@pytest.fixture
def measure(run_command: Any, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """`measure(script, *arguments, limit=120) -> ProbeResult`: scripts, measured by tests/resource_probe.py."""
    report = tmp_path_factory.mktemp("measured") / "report"

    def run(*argv: str | Path, limit: int = 120) -> ProbeResult:
        report.write_text("inf inf")  # A command that a signal ends writes no report.
        end = run_command([launcher.PYTHON, resource_probe.__file__, report, limit, *argv], timeout=2 * limit)
        return ProbeResult(end.returncode, end.stdout, end.stderr, *map(float, report.read_text().split()))

    return run


@pytest.fixture(scope="session")
def untrained() -> dict[str, Tensor]:
    """The tensors of an untrained model, by the names in a checkpoint."""
    return bad_checkpoints.model_weights()


@pytest.fixture(scope="session")
def metadata(recipe: Path, images: Path) -> dict[str, Any]:
    """The metadata of a checkpoint of the tiny recipe, as plain values."""
    return bad_checkpoints.metadata_values(images, "data.workers=1", recipe=recipe)
