"""Faults at named points of a real training.

As a program this is train.py with faults and a narrow network: `torchrun tests/faults.py --recipe ...` does what the
environment variable TRAIN_FAULTS says, a JSON list of faults and a folder that remembers which have happened, so that a
process that was started again does not meet them again.

Points (a number is that of completed steps):

    import     before torch is imported          step:N      before step N + 1
    open       before the data are opened        reduce:N    inside step N + 1: gradients are reduced, statistics not
    warm-up    before the first pass             validate:N  inside the validation after step N
    end        after the last step, before       save:N      before the checkpoint of step N is written
               `finished` is written             write:N     when its file is written
    exit       after everything                  saved:N     once it is written, before `last` points to it

Faults:

    kill, stop             SIGKILL or SIGSTOP to this process
    signal:NAME            a signal to this process             torchrun:NAME  to torchrun
    worker:NAME            to a loader worker of this process   group:NAME     to this process and all its workers
    memory, memory:BYTES   an error for want of memory: raised, or real, by a limit of so many more bytes
    error:ERRNO            what the point begins fails with this error of the operating system
    file-size:BYTES        no file may become larger
    files:N                so many files may be open
    cpu                    the soft limit of CPU time is reached; there is no hard limit
    clock:SECONDS          the wall clock jumps
    hold, hold-until-asked wait until the test says `release`, or until this process is asked to stop
    sleep:SECONDS          wait
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from seresnext.checkpoint import file_format

VARIABLE = "TRAIN_FAULTS"
# Arguments with which the batch of the tests' tiny recipe divides over so many processes.
SIZES = {1: (), 2: (), 3: ("--set", "batch.global_size=12"), 4: ("--set", "batch.micro_size=2")}
_WAIT = 120  # seconds that a held process waits for the test
_FORWARDING = 1.5  # seconds until torchrun has passed a signal on, so that it comes at the point


@dataclass(frozen=True)
class Fault:
    """What happens at a point of one rank's run."""

    at: str
    do: str
    rank: int = 0


class Faults:
    """The test's side: the faults of a run and whether they have happened."""

    def __init__(self, folder: Path, faults: Sequence[Fault]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._faults = faults

    @property
    def environment(self) -> dict[str, str]:
        """For the command that runs this file."""
        value = {"folder": str(self._folder), "faults": [asdict(fault) for fault in self._faults]}
        return {VARIABLE: json.dumps(value)}

    def happened(self, number: int = 0) -> bool:
        """Whether the fault was reached."""
        return (self._folder / f"happened-{number}").exists()

    def pid(self, number: int = 0) -> int:
        """The process that met it."""
        return int((self._folder / f"happened-{number}").read_text())

    def exit_codes(self) -> dict[int, int]:
        """The codes that ranks exited with, of those that came to their end: torchrun tells only its own."""
        return {int(file.name[5:]): int(file.read_text()) for file in self._folder.glob("exit-*")}

    def release(self) -> None:
        """Let go of all that hold."""
        (self._folder / "release").touch()


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
                temporary = self._folder / f"about-to-{number}"
                temporary.write_text(str(os.getpid()))
                temporary.rename(mark)
                self._do(*fault.do.partition(":")[::2])

    def _do(self, what: str, value: str) -> None:
        match what:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
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
                _use_memory(int(value)) if value else _raise(MemoryError())
            case "error":
                number = getattr(errno, value)
                raise OSError(number, os.strerror(number))
            case "file-size":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), resource.RLIM_INFINITY))
            case "files":
                resource.setrlimit(resource.RLIMIT_NOFILE, (int(value), int(value)))
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
                raise AssertionError(f"no such fault: {what}")

    def begin(self) -> None:
        (self._folder / f"begun-{self._rank}").touch()

    def _wait_for_all(self) -> None:
        """Until every rank listens: a signal that finds Python itself starting up ends it."""
        ranks = range(int(os.environ["WORLD_SIZE"]))
        while not all((self._folder / f"begun-{rank}").exists() for rank in ranks):
            time.sleep(0.02)

    def note_exit(self, code: int) -> None:
        (self._folder / f"exit-{self._rank}").write_text(str(code))

    def patch(self) -> None:
        """Put the points into the program, and the narrow network."""
        from exactness import narrow

        from seresnext.checkpoint import store
        from seresnext.distributed import BatchNormStatistics
        from seresnext.models import registry
        from seresnext.run import opening
        from seresnext.run.assemble import Run
        from seresnext.run.folder import RunFolder
        from seresnext.training import trainer
        from seresnext.training.step import TrainingStep

        registry.create_model = narrow
        before = self._before
        before(opening, "open_splits", lambda *args, **options: "open")
        before(Run, "trainer", self._go_on_from)
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

    def _go_on_from(self, _run: Any, _folder: Any, _saved: Any, progress: Any, _stop: Any) -> str:
        self._completed = progress.step
        return ""

    def _begin_step(self, *args: Any, step: int, **options: Any) -> str:
        self._completed = step + 1
        return f"step:{step}"


def _step_of(path: Path) -> int | None:
    """Of a checkpoint, by its name; the names of pointers tell none."""
    digits = "".join(filter(str.isdigit, path.name))
    return int(digits) if digits else None


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _raise(error: BaseException) -> None:
    raise error


def _children() -> list[int]:
    """The processes that this one started: its loader workers."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _use_memory(more: int) -> None:
    """Limit the memory and ask torch for more than that, and than what it keeps for another use."""
    import torch

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))
    torch.empty(1 << 36, dtype=torch.uint8)


def main() -> None:
    """Train as train.py does, with the faults of the environment."""
    value = json.loads(os.environ[VARIABLE])
    folder, faults = Path(value["folder"]), [Fault(**fault) for fault in value["faults"]]

    from seresnext.process.exit import ProcessEnd, replace_closed_streams
    from seresnext.process.signals import die_with_launcher, ignore_signals
    from seresnext.process.stop_request import StopRequest

    die_with_launcher()
    gc.disable()
    replace_closed_streams()
    end = ProcessEnd()
    # As in train.py, with points in between.
    with StopRequest() as stop:
        injection = _Injection(folder, faults, lambda: stop.has_come)
        try:
            injection.begin()
            injection.reach("import")
            from seresnext.cli import train_main

            gc.freeze()
            injection.patch()
            code = train_main(stop=stop)
            injection.reach("exit")
        except KeyboardInterrupt:
            code = 130
        ignore_signals()
    injection.note_exit(code)
    end.exit(code)


if __name__ == "__main__":
    main()
