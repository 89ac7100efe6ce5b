"""Inputs by number, a child process that reads the inputs, and the rules that decide what an escape is.

An input is a function of (seed, reader, number), so the fuzzer can make a single input again. The first numbers of a
reader are the unchanged seeds, which must be accepted. A hang or a crash ends the child process, never the fuzzer.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import re
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch

from seresnext.errors import for_terminal
from seresnext.process.signals import FORK

Files = Mapping[str, bytes | str]
"""An input: files by relative path. A text makes another kind of entry: `folder`, `pipe`, or `link:TARGET`."""

OTHER_ENTRIES = ("folder", "pipe", "link:nowhere", "link:/dev/zero", "link:/dev/full", "link:/proc/self/mem", "link:.")

LONGEST_MESSAGE = 100_000  # Characters; errors.py prints no more of a message.
SECONDS = 10.0  # The limit for one input. Most inputs take a few milliseconds.
MEMORY = 128 << 20  # Bytes that a reader may take for an input,
MEMORY_PER_BYTE = 64  # and more bytes for each byte of the input.
_ADDRESS_SPACE = 1 << 30  # Bytes that a child may allocate, so that an endless reading does not fill the machine.
_M_MMAP_THRESHOLD, _M_MMAP_MAX = -3, -4  # malloc.h
_MOST_HANGS = 5  # The fuzzer stops testing a reader after this number of hangs and crashes.
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
# Warnings that Python prints by default.
_SHOWN_WARNINGS = (UserWarning, RuntimeWarning, SyntaxWarning, FutureWarning, UnicodeWarning, BytesWarning)


class WrongResult(Exception):
    """A reader accepted an input, and the result fails an independent check."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    `seeds` returns valid inputs. `mutate(draws, input, other)` returns a damaged one, of which a part may come from
    `other`, another seed. `read(folder, files)` reads an input from the files in `folder` and uses the result. A
    refusal is one of `refusals`; WrongResult stands for a result that an independent check finds wrong.
    """

    seeds: Callable[[], Sequence[Files]]
    mutate: Callable[[Random, Files, Files], Files]
    read: Callable[[Path, Files], None]
    refusals: tuple[type[Exception], ...]


class Outcome(NamedTuple):
    """How an input was read: `accepted`, `refused` or `escape`; the reason of an escape; bytes of memory taken."""

    verdict: str
    reason: str = ""
    details: str = ""
    grown: int = 0


class Escape(NamedTuple):
    """An input with an outcome that is not permitted."""

    number: int
    reason: str
    details: str


@dataclass
class Row:
    """The counts of a reader. `grown` is the most memory in bytes that one input took."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    escapes: list[Escape] = field(default_factory=list)
    seconds: float = 0.0
    grown: int = 0

    def add(self, number: int, outcome: Outcome) -> None:
        """Count an outcome."""
        self.inputs += 1
        self.grown = max(self.grown, outcome.grown)
        if outcome.verdict == "escape":
            self.escapes.append(Escape(number, outcome.reason, outcome.details))
        elif outcome.verdict == "accepted":
            self.accepted += 1
        else:
            self.refused += 1


# ------------------------------------------------------------------------------------------------ inputs


def make_input(reader: Reader, seeds: Sequence[Files], name: str, seed: int, number: int) -> Files:
    """Return the input of a number: a seed unchanged for the first numbers, else a damaged one."""
    if number < len(seeds):
        return seeds[number]
    draws = Random(f"{seed}/{name}/{number}")
    whole = draws.choice(seeds)
    files = reader.mutate(draws, whole, draws.choice(seeds))
    return files if files != whole else reader.mutate(draws, whole, draws.choice(seeds))  # Damage may change nothing.


def bytes_of(files: Files, name: str) -> bytes:
    """Return the content of a file of an input."""
    content = files[name]
    assert isinstance(content, bytes)
    return content


def of_one_file(mutate: Callable[[Random, bytes, bytes], bytes]) -> Callable[[Random, Files, Files], Files]:
    """Return a mutation of inputs of one file from a mutation of bytes."""

    def mutate_files(draws: Random, files: Files, other: Files) -> Files:
        (name,), (second,) = files, other
        return {name: mutate(draws, bytes_of(files, name), bytes_of(other, second))}

    return mutate_files


def write_files(folder: Path, files: Files) -> None:
    """Write the files of an input into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "folder":
            path.mkdir()
        elif content == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(content.removeprefix("link:"))


# ------------------------------------------------------------------------------------------------ judging


def judge(reader: Reader, folder: Path, files: Files, is_seed: bool = False) -> Outcome:
    """Read one input from the files in `folder` and judge the outcome."""
    printed = io.StringIO()
    message = reason = details = ""
    verdict = "accepted"
    before = _reset_peak()
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("always")
        try:
            reader.read(folder, files)
        except reader.refusals as refusal:
            verdict, message = "refused", str(refusal)
            reason = _fault_of_message(message)
            details = message
        except WrongResult as wrong:
            reason = f"wrong result: {wrong}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # A panic of Rust code is no Exception.
            reason = f"{type(error).__name__} at {_place(error)}: {str(error)[:200]}"
            details = "".join(traceback.format_exception(error))
    grown = _peak() - before
    allowed = MEMORY + MEMORY_PER_BYTE * sum(map(len, files.values()))
    shown = [warning for warning in warned if issubclass(warning.category, _SHOWN_WARNINGS)]
    if is_seed and verdict == "refused":
        reason = reason or f"a valid input is refused: {message[:500]}"
    if shown:
        reason = reason or f"Python warns: {shown[0].category.__name__}: {str(shown[0].message)[:200]}"
    if not printed.getvalue().replace("\n", "").isprintable():  # A terminal would obey such characters.
        reason = reason or f"control characters are printed: {ascii(printed.getvalue())[:200]}"
    if grown > allowed:
        reason = reason or f"{grown >> 20} MiB of memory for an input of {sum(map(len, files.values()))} bytes"
    if reason:
        verdict = "escape"
    return Outcome(verdict, printable(reason), details, grown)


def printable(text: str) -> str:
    """Return the text on one line, for the terminal."""
    return for_terminal(text).replace("\n", " / ")


def _fault_of_message(message: str) -> str:
    if not message.strip():
        return "an empty message"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters: {message[:100]}"
    if match := _ADDRESS.search(message):
        return f"a message with a Python address: {message[max(0, match.start() - 60) : match.end()]}"
    return ""


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of this project, else of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/seresnext/" in frame.filename]
    last = (ours or frames)[-1]
    return f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}"


def _reset_peak() -> int:
    """Forget the peak memory of this process (proc(5), clear_refs). Returns the present memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_bytes()
    return int(status[status.index(b"VmHWM:") + 6 :].split(maxsplit=1)[0]) << 10


# ------------------------------------------------------------------------------------------------ running


def fuzz(name: str, reader: Reader, numbers: range, seed: int = 0, seconds: float = SECONDS) -> Row:
    """Read the inputs of some numbers in a child process and return the counts and escapes."""
    torch.set_num_threads(1)  # A child inherits no threads.
    row, start = Row(name), time.monotonic()
    seeds = reader.seeds()
    hangs, number = 0, numbers.start
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while number < numbers.stop and hangs < _MOST_HANGS:
            with _Child(name, reader, seeds, range(number, numbers.stop), seed, Path(folder)) as child:
                while number < numbers.stop:
                    outcome, alive = child.next_outcome(seconds)
                    row.add(number, outcome)
                    number += 1
                    if not alive:
                        hangs += 1
                        break
    row.seconds = time.monotonic() - start
    return row


class _Child:
    """A process that reads inputs one after the other and sends the outcomes."""

    def __init__(
        self, name: str, reader: Reader, seeds: Sequence[Files], numbers: range, seed: int, folder: Path
    ) -> None:
        context = FORK
        self._outcomes, ours = context.Pipe(duplex=False)
        arguments = (name, reader, seeds, numbers, seed, folder, ours)
        self._process = context.Process(target=_read_all, args=arguments, daemon=True)
        self._process.start()
        ours.close()

    def next_outcome(self, seconds: float) -> tuple[Outcome, bool]:
        """Return the outcome of the next input, and whether the child still lives."""
        try:
            if self._outcomes.poll(seconds):
                outcome = self._outcomes.recv()
                if isinstance(outcome, str):
                    raise RuntimeError(f"the input could not be made:\n{outcome}")
                return outcome, True
            return Outcome("escape", f"no end within {seconds:g} s"), False
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            end = f"signal {-code}" if code < 0 else f"code {code}"
            return Outcome("escape", f"the process ended with {end}"), False

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._outcomes.close()


def _read_all(
    name: str, reader: Reader, seeds: Sequence[Files], numbers: range, seed: int, scratch: Path, outcomes: Connection
) -> None:
    # Large pieces come from the system and not from free memory of the parent, which would hide the growth.
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(_M_MMAP_MAX, 1 << 16)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # The parent reports a crash.
    folder = scratch / "input"
    os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = str(folder / "home")
    shutil.rmtree(folder, ignore_errors=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # C libraries print warnings about damaged images there.
    for number in numbers:
        try:
            files = make_input(reader, seeds, name, seed, number)
        except Exception:  # The parent raises this fault of the fuzzer.
            outcomes.send(traceback.format_exc())
            return
        folder.mkdir()
        write_files(folder, files)
        outcome = judge(reader, folder, files, is_seed=number < len(seeds))
        shutil.rmtree(folder)
        outcomes.send(outcome)
