"""Faults at named points of a real training.

As a program this is train.py with faults and a narrow network: `torchrun tests/faults.py --recipe ...`. The environment
variable TRAIN_FAULTS has a JSON list of faults, and a folder for marks of the faults that have happened. A restarted
process does not repeat a fault with a mark.

Points (a number is that of completed steps):

    import     before torch is imported          step:N      before step N + 1
    open       before the data are opened        reduce:N    inside step N + 1: gradients are reduced, statistics not
    weights    before `model.weights` is found   validate:N  inside the validation after step N
    warm-up    before the first pass
    end        after the last step, before       save:N      before the checkpoint of step N is written
               `finished` is written             write:N     when the file of the checkpoint is written
    exit       after everything                  saved:N     after the write, before `last` points to the checkpoint

Faults:

    signal:NAME            a signal to this process             torchrun:NAME  to torchrun
    worker:NAME            to a loader worker of this process   group:NAME     to this process and all its workers
    memory, memory:BYTES   an error about memory: raised, or real, by a limit of so many more bytes
    error:ERRNO            the operation after the point fails with this error of the operating system
    file-size:BYTES        no file may become larger
    cpu                    the soft limit of CPU time is reached; there is no hard limit
    clock:SECONDS          the wall clock jumps
    hold, hold-until-asked wait until the test calls `release`, or until this process has a stop request
    sleep:SECONDS          wait
"""

import errno
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from seresnext.checkpoint import file_format

ROOT = Path(__file__).parents[1]
VARIABLE = "TRAIN_FAULTS"
# Arguments that make the batch of the tiny recipe divide over a number of processes.
SIZES = {1: (), 2: (), 3: ("--set", "batch.global_size=12"), 4: ("--set", "batch.micro_size=2")}
_WAIT = 120  # seconds that a held process waits for the test
_FORWARDING = 1.5  # seconds until torchrun has forwarded a signal, so that the signal comes at the point


@dataclass(frozen=True)
class Fault:
    """A fault at a point of the run on one rank."""

    at: str
    do: str
    rank: int = 0


class Faults:
    """The faults of a run, in the process of the test."""

    def __init__(self, folder: Path, faults: Sequence[Fault]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._faults = faults

    @property
    def environment(self) -> dict[str, str]:
        value = {"folder": str(self._folder), "faults": [asdict(fault) for fault in self._faults]}
        return {VARIABLE: json.dumps(value)}

    def happened(self, number: int = 0) -> bool:
        return (self._folder / f"happened-{number}").exists()

    def exit_codes(self) -> dict[int, int]:
        """Return the exit codes of the ranks that ended by themselves. torchrun reports only its own exit code."""
        return {int(file.name[5:]): int(file.read_text()) for file in self._folder.glob("exit-*")}

    def release(self) -> None:
        (self._folder / "release").touch()


def one_error(result: Any) -> str:
    """Return the one error line of our program. A traceback of our program fails the test."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert f"{ROOT}/seresnext" not in result.stderr, result.stderr
    return line


# ------------------------------------------------------------------------------------------------ in the training


class _Injection:
    def __init__(self, folder: Path, faults: list[Fault], is_asked: Callable[[], bool]) -> None:
        self._folder = folder
        self._faults = faults
        self._is_asked = is_asked
        self._rank = int(os.environ.get("RANK", "0"))
        self._completed = 0

    def reach(self, point: str) -> None:
        for number, fault in enumerate(self._faults):
            if (fault.at, fault.rank) != (point, self._rank):
                continue
            mark = self._folder / f"happened-{number}"
            if not mark.exists():
                mark.touch()
                self._do(*fault.do.partition(":")[::2])

    def _do(self, action: str, value: str) -> None:
        match action:
            case "signal":
                os.kill(os.getpid(), signal.Signals[value])
            case "torchrun":
                self._wait_for_all()
                os.kill(os.getppid(), signal.Signals[value])
                time.sleep(_FORWARDING)
            case "worker":
                os.kill(_children()[0], signal.Signals[value])
            case "group":
                for pid in (*_children(), os.getpid()):
                    os.kill(pid, signal.Signals[value])
            case "memory":
                if not value:
                    raise MemoryError
                _use_memory(int(value))
            case "error":
                raise OSError(getattr(errno, value), value)
            case "file-size":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), resource.RLIM_INFINITY))
            case "cpu":
                resource.setrlimit(resource.RLIMIT_CPU, (max(1, int(time.process_time())), resource.RLIM_INFINITY))
                while not self._is_asked():  # The kernel checks the limit at clock ticks of a busy process.
                    pass
            case "clock":
                now = time.time
                time.time = lambda: now() + float(value)
            case "hold":
                _wait_until((self._folder / "release").exists)
            case "hold-until-asked":
                _wait_until(self._is_asked)
            case "sleep":
                time.sleep(float(value))
            case _:
                raise AssertionError(f"no such fault: {action}")

    def begin(self) -> None:
        (self._folder / f"begun-{self._rank}").touch()

    def _wait_for_all(self) -> None:
        """Wait until every rank handles signals: a signal during the start of Python ends the process."""
        ranks = range(int(os.environ["WORLD_SIZE"]))
        while not all((self._folder / f"begun-{rank}").exists() for rank in ranks):
            time.sleep(0.02)

    def record_exit(self, code: int) -> None:
        (self._folder / f"exit-{self._rank}").write_text(str(code))

    def patch(self) -> None:
        from exactness import narrow

        from seresnext.checkpoint import store
        from seresnext.distributed import BatchNormStatistics
        from seresnext.models import registry
        from seresnext.run import assemble, opening
        from seresnext.run.assemble import Run
        from seresnext.run.folder import RunFolder
        from seresnext.training import trainer
        from seresnext.training.step import TrainingStep

        registry.create_model = narrow
        before = self._before
        before(assemble, "open_splits", lambda *args, **options: "open")
        before(opening, "first_weights", lambda section: "weights")
        before(Run, "trainer", self._resume_from)
        before(TrainingStep, "warm_up", lambda *args, **options: "warm-up")
        before(TrainingStep, "__call__", self._begin_step)
        before(BatchNormStatistics, "end_step", lambda *args, **options: f"reduce:{self._completed - 1}")
        before(store, "commit", lambda folder, step, *args, **options: f"save:{step}")
        before(file_format, "write_synced", lambda path, *args, **options: f"write:{_step_of(path)}")
        before(store, "update_link", lambda folder, name, path: f"saved:{_step_of(path)}")
        before(RunFolder, "write_status", lambda folder, state, *args: "end" if state == "finished" else "")
        evaluate = trainer.evaluate

        @wraps(evaluate)
        def evaluate_reaching(*args: Any, stop_requested: Callable[[], bool] = lambda: False, **options: Any) -> Any:
            rounds = 0

            def asked() -> bool:
                nonlocal rounds
                rounds += 1
                if rounds == 2:
                    self.reach(f"validate:{self._completed}")
                return stop_requested()

            return evaluate(*args, stop_requested=asked, **options)

        trainer.evaluate = evaluate_reaching

    def _before(self, owner: Any, name: str, point: Callable[..., str]) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def reaching(*args: Any, **options: Any) -> Any:
            self.reach(point(*args, **options))
            return function(*args, **options)

        setattr(owner, name, reaching)

    def _resume_from(self, _run: Any, _folder: Any, _saved: Any, progress: Any, _stop: Any) -> str:
        self._completed = progress.step
        return ""

    def _begin_step(self, *args: Any, step: int, **options: Any) -> str:
        self._completed = step + 1
        return f"step:{step}"


def _step_of(path: Path) -> int | None:
    """Return the step of a checkpoint by the file name, and None for `last` and `best`."""
    digits = "".join(filter(str.isdigit, path.name))
    return int(digits) if digits else None


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _children() -> list[int]:
    """Return the child processes, which are loader workers."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _use_memory(more: int) -> None:
    """Limit the memory and ask torch for more than the limit and the memory that torch keeps."""
    import torch

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))
    torch.empty(1 << 36, dtype=torch.uint8)


def main() -> None:
    value = json.loads(os.environ[VARIABLE])
    folder, faults = Path(value["folder"]), [Fault(**fault) for fault in value["faults"]]

    from seresnext.process.ranks import run_ranks
    from seresnext.process.signals import StopRequest

    def train(stop: StopRequest) -> int:
        injection = _Injection(folder, faults, lambda: stop.has_come)
        try:
            injection.begin()
            injection.reach("import")
            from seresnext.cli import main as run_command

            gc.freeze()
            injection.patch()
            code = run_command(["train", *sys.argv[1:]], stop)
            injection.reach("exit")
        except KeyboardInterrupt:
            code = 130
        injection.record_exit(code)
        return code

    run_ranks(train, saves=True)


if __name__ == "__main__":
    main()
