#!/usr/bin/env python
"""Kill a small training again and again at random, and compare the result with an undisturbed training.

    python scripts/soak.py --kills 20 --world 2

Each kill sends SIGKILL or a stop signal to torchrun or to a process of torchrun, during the start or after some steps.
Some kills send SIGKILL to a loader worker after some steps; the run must then end as failed (workers ignore the other
signals). After each kill, the same command resumes. Exits with 0 when every life ended in time and left no process
behind, and the last checkpoint and the metrics have the bits of an undisturbed run. --seed draws other kills. Needs no
GPU and no data.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import _python  # noqa: F401
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from seresnext.errors import Failure
from seresnext.process.exit import run_script
from seresnext.process.signals import STOP_SIGNALS

ROOT = Path(__file__).parents[1]
MARK = "SERESNEXT_SOAK"
SIGNALS = (signal.SIGKILL, *STOP_SIGNALS)
MOST_STEPS = 12  # Steps of a life before a kill. A kill may come later, so the run has room for one more life.
STARTING = 8.0  # A kill of a starting life comes within so many seconds.
PATIENCE = 90.0  # Seconds that a life may take to end. torchrun waits 30 s for a process that does not end.
RECIPE = """
model: {name: seresnext26, num_classes: 3, drop_rate: 0.2}
data: {image_size: 32, workers: 1}
optimizer: {lr: 0.002}
schedule: {name: cosine, warmup: 2st}
ema: {decay: 0.9}
evaluation: {every: 10st}
checkpoint: {every: 5st}
logging: {every: 1st}
runtime: {precision: fp32, collective_timeout: 20}
"""


class SoakFailed(Failure):
    """A life that did not end or left processes, or a run with another result."""


def main() -> None:
    """Parse the command line and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="number of kills (default: 20)")
    parser.add_argument("--world", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the kills (default: 0)")
    parser.add_argument("--program", default="train.py", help="program that trains (default: train.py)")
    options = parser.parse_args()
    if not (ROOT / options.program).is_file():
        parser.error(f"--program {options.program}: no such file; name a file in {ROOT}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), options.kills, options.world, options.seed, options.program)
        try:
            soak.run()
        finally:
            soak.end()


class Soak:
    """A run with kills, and the same run without kills."""

    def __init__(self, folder: Path, kills: int, world: int, seed: int, program: str) -> None:
        self._folder = folder
        self._kills = kills
        self._world = world
        self._program = program
        self._draws = random.Random(seed)
        self._output = folder / "killed"
        self._mark = uuid.uuid4().hex
        make_images(folder / "images")
        batch = f"batch: {{global_size: {4 * world}, micro_size: 2}}"  # Two micro-batches a process and step.
        (folder / "recipe.yaml").write_text(f"{RECIPE}{batch}\nlength: {(kills + 1) * MOST_STEPS}st\n")

    def run(self) -> None:
        """Kill the run, resume to the end, and compare. Raises SoakFailed."""
        started, undisturbed = time.monotonic(), self._folder / "undisturbed"
        for number in range(1, self._kills + 1):
            self._live_and_be_killed(number)
        self._live(self._output)
        print(f"{self._kills} kills, {time.monotonic() - started:.0f} s")
        self._live(undisturbed)
        killed, whole = contents(self._output), contents(undisturbed)
        print(f"killed:      {digest(killed)}\nundisturbed: {digest(whole)}")
        if killed != whole:
            raise SoakFailed(f"the run with kills has another result:\n{differences(killed, whole)}")
        print("the same, to the bit")

    def end(self) -> None:
        """Kill all processes of this soak, also after Ctrl-C."""
        while left := self._alive():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _live(self, output: Path) -> None:
        """Train to the end. Raises SoakFailed."""
        process = self._start(output)
        code = process.wait()
        if code or state(output)["state"] != "finished":
            raise SoakFailed(f"{output} ended with {code}, {state(output)}:\n{self._said()}")

    def _live_and_be_killed(self, number: int) -> None:
        process, first = self._start(self._output), last_step(self._output)
        starting = self._draws.random() < 0.3
        if starting:
            steps, seconds = MOST_STEPS, self._draws.uniform(0, STARTING)
        else:
            steps, seconds = self._draws.randint(1, MOST_STEPS), PATIENCE
        wait_until(lambda: process.poll() is not None or last_step(self._output) >= first + steps, seconds)
        if process.poll() is not None:
            raise SoakFailed(f"the run ended by itself before kill {number}:\n{self._said()}")
        pid, who, sent = self._choose(process.pid, has_workers=not starting)
        at, killed = last_step(self._output), time.monotonic()
        try:
            os.kill(pid, sent)
        except ProcessLookupError:
            raise SoakFailed(f"{who} ended before kill {number}:\n{self._said()}") from None
        wait_until(lambda: process.poll() is not None and not self._alive(), PATIENCE)
        seconds, status = time.monotonic() - killed, state(self._output)
        if process.poll() is None or self._alive():
            raise SoakFailed(f"processes {self._alive()} were left after {seconds:.0f} s:\n{self._said()}")
        end = f"gone in {seconds:.1f} s, {status['state']} at step {status['step']}"
        print(f"kill {number}: {sent.name} to {who} after step {at}: {end}", flush=True)
        if who.startswith("a loader worker") and status["state"] != "failed":
            raise SoakFailed(f"the run lost a loader worker and is not `failed`:\n{self._said()}")

    def _choose(self, launcher: int, *, has_workers: bool) -> tuple[int, str, signal.Signals]:
        """Return a process, the name of the process, and a signal."""
        sent, chosen = self._draws.choice(SIGNALS), self._draws.randrange(self._world + 2)
        ranks = children(launcher) if self._world > 1 else []
        if chosen > self._world and has_workers:
            rank = self._draws.randrange(self._world)
            # The first child reads training images for the whole run. Workers of a validation end with the validation.
            workers = children(ranks[rank] if rank < len(ranks) else launcher)
            if workers:
                return workers[0], f"a loader worker of rank {rank}", signal.SIGKILL
        if chosen < len(ranks):
            return ranks[chosen], f"rank {chosen}", sent
        return launcher, "the launcher", sent

    def _start(self, output: Path) -> subprocess.Popen[bytes]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self._world}"]
        launcher += ["--signals-to-handle", ",".join(number.name for number in STOP_SIGNALS)]
        words = [self._program, "--recipe", self._folder / "recipe.yaml", "--data", self._folder / "images"]
        with (self._folder / "said.txt").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, *(launcher if self._world > 1 else []), *words, "--output", output],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": "", MARK: self._mark},
                start_new_session=True,
            )

    def _said(self) -> str:
        return (self._folder / "said.txt").read_text(errors="replace")[-5000:]

    def _alive(self) -> list[int]:
        """Return the ids of all processes of this soak; each process inherits the mark."""
        mark = f"{MARK}={self._mark}".encode()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if mark in read(pid, "environ") and b"State:\tZ" not in read(pid, "status")]


def make_images(root: Path) -> None:
    """Write images of three classes: noise around the colour of the class."""
    for split, count in (("train", 16), ("val", 5)):
        for label in range(3):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                draws = np.random.default_rng([label, number, count])
                pixels = np.clip(draws.normal(np.eye(3)[label] * 80 + 80, 40, (40, 40, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def contents(run: Path) -> dict[str, str]:
    """Return digests of the tensors of the last checkpoint, and the lines of the metrics without speeds and times.

    Without the lines of the watch, too: the watch of a resumed process starts with no steps.
    """
    found = {}
    for name, array in sorted(load_file(run / "checkpoints" / "last.safetensors").items()):
        found[name] = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    for number, event in enumerate((one for one in events if one["event"] not in ("slowest_rank", "anomaly")), 1):
        for name in ("images_per_second", "data_wait", "seconds_per_step"):
            event.pop(name, None)
        found[f"line {number} of the metrics"] = json.dumps(event, sort_keys=True)
    return found


def digest(found: dict[str, str]) -> str:
    """Return the digest of all contents."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def differences(one: dict[str, str], other: dict[str, str], most: int = 20) -> str:
    """Return the differences of two contents, one in a line."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    lines = [f"{name}: {one.get(name)}, undisturbed {other.get(name)}" for name in names[:most]]
    return "\n".join([*lines, *([f"and {len(names) - most} more"] if len(names) > most else [])])


def state(run: Path) -> dict[str, object]:
    """Return `status.json`, or a stand-in before the file exists."""
    try:
        return json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "not begun", "step": 0}


def last_step(run: Path) -> int:
    """Return the last step in the metrics."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for the condition, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def read(pid: int, name: str) -> bytes:
    """Return a file of /proc about a process. Empty after the end, and for a process of another user."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def children(pid: int) -> list[int]:
    """Return the ids of the child processes by age: for torchrun, the ranks."""
    return sorted(int(child) for child in read(pid, f"task/{pid}/children").split())


if __name__ == "__main__":
    run_script(main)
