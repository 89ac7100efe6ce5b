"""Measurements that take turns, so that a slow moment of the machine slows all of them, and the comparison."""

import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from seresnext.errors import UsageError

T = TypeVar("T")

_END_SECONDS = 10.0


class Worker:
    """A process that prints `ready`, and then a line of figures for each line of input. The end of input ends it."""

    def __init__(self, name: str, command: Sequence[str], threads: int, **environment: str) -> None:
        self._name = name
        # A full pipe would stop the process, since nobody reads stderr during a round.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
        )

    def ask(self, word: str = "") -> None:
        """Request a round."""
        assert self._process.stdin
        print(word, file=self._process.stdin, flush=True)

    def answer(self) -> str:
        """Return the next line. Raises UsageError with the last line of stderr if the process ended."""
        assert self._process.stdout
        line = self._process.stdout.readline().rstrip("\n")
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            reason = self._stderr.read().strip().splitlines()[-1:] or ["no reason printed"]
            raise UsageError(f"{self._name} ended: {reason[0]}")
        return line

    def close(self) -> None:
        try:
            self._process.communicate(timeout=_END_SECONDS)  # A killed process leaves its temporary folder.
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._stderr.close()


def take_turns(measures: Mapping[str, Callable[[], T]], rate: Callable[[T], float], rounds: int) -> dict[str, list[T]]:
    """Return the results of so many rounds of all measures, after one round that does not count."""
    found: dict[str, list[T]] = {name: [] for name in measures}
    for number in range(1 + rounds):
        for name, measure in measures.items():
            found[name].append(measure())
        words = ", ".join(f"{name} {rate(taken[-1]):.2f}" for name, taken in found.items())
        print(f"round {number}{' (not counted)' if number == 0 else ''}: {words} images/s", flush=True)
    return {name: taken[1:] for name, taken in found.items()}


def compare(rates: Mapping[str, Sequence[float]], series: str) -> dict[str, Any]:
    """Return the median rates, the rates as `series`, and the median ratios of neighbouring rounds."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peers = {
        name: {"images_per_second": medians[name], series: values} for name, values in rates.items() if name != "ours"
    }
    ratio = {peer: statistics.median(a / b for a, b in zip(rates["ours"], rates[peer], strict=True)) for peer in peers}
    print(f"ours: {medians['ours']:.2f} images/s")
    for peer in peers:
        print(f"{peer}: {medians[peer]:.2f} images/s; ours is {ratio[peer]:.3f} times as fast")
    return {"images_per_second": medians["ours"], series: rates["ours"], "peer": peers, "ratio": ratio}
