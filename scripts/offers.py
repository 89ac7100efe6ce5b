"""Train one run on machines that come and go, and draw the losses with the losses of an unbroken run.

    python scripts/offers.py --data data/digits --output DIR [--processes 4 2 1] [--set KEY=VALUE]...

Each machine has its own number of processes and its own empty run folder, and all have one mirror. Every machine but
the last is killed with all its processes. The command prints the largest differences and writes DIR/offers.svg.
Needs the extras `remote` and `report`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import _python  # noqa: F401

from seresnext.arguments import path_argument
from seresnext.errors import Failure
from seresnext.metrics.status import read_status
from seresnext.process.exit import run_script

ROOT = Path(__file__).parents[1]
# A low learning rate: at 0.01 a difference of 1e-16 grows to 0.1 in 40 steps of this network, on one machine, too.
_SETTINGS = ("length=66st", "optimizer.lr=0.001", "checkpoint.every=11st", "evaluation.every=66st", "logging.every=1st")
_COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:purple")


def start(arguments: argparse.Namespace, folder: Path, processes: int, *settings: str) -> subprocess.Popen[bytes]:
    """Start a training in a session of its own, with one thread a process."""
    command = [sys.executable, "-m", "seresnext.torchrun", "--standalone", f"--nproc_per_node={processes}", "train.py"]
    command += ["--recipe", "digits", "--data", str(arguments.data.absolute()), "--output", str(folder.absolute())]
    sets = [f"batch.micro_size={64 // max(arguments.processes)}", "data.workers=0", "runtime.precision=fp64"]
    sets += [*arguments.set, *settings]
    command += [word for setting in sets for word in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end of a training. Raises Failure if the training did not finish."""
    if process.wait() != 0 or read_status(folder).get("state") != "finished":
        raise Failure(f"the training in {folder} failed; its output is above")


def lose(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    """Kill all processes of a machine once the mirror has a checkpoint of the step or a later one."""
    while (read_status(folder).get("mirrored_step") or 0) < step:
        if process.poll() is not None:
            raise Failure(f"the training in {folder} ended before step {step} was mirrored; its output is above")
        time.sleep(0.1)
    # torchrun starts each worker in its own session. A worker ends with torchrun, a killed one without a save.
    for pid in _descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    """Return the process and all its descendants, the process first."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def losses(folder: Path) -> dict[int, float]:
    """Return the training losses of a run by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["event"] == "train"}


def draw(whole: dict[int, float], moved: dict[int, float], machines: list[tuple[int, int]], path: Path) -> None:
    """Draw both losses and their difference. `machines` has the processes and the first step of each machine."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "offers"  # The same numbers give the same file.
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, height_ratios=(2, 1), layout="constrained")
    upper.plot(list(whole), list(whole.values()), color="lightgray", linewidth=5, label="unbroken, 1 process")
    for number, (processes, first) in enumerate(machines):
        last = machines[number + 1][1] if number + 1 < len(machines) else max(whole)
        steps = [step for step in moved if first < step <= last]
        label = f"machine {number + 1}: {processes} {'process' if processes == 1 else 'processes'}"
        upper.plot(steps, [moved[step] for step in steps], color=_COLOURS[number % 4], label=label)
        lower.plot(steps, [abs(moved[step] - whole[step]) for step in steps], color=_COLOURS[number % 4])
        for axes in (upper, lower) if number else ():
            axes.axvline(first, color="gray", linestyle=":")
    upper.set_ylabel("training loss")
    upper.legend()
    lower.set(xlabel="step", ylabel="difference", yscale="log")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train both runs, print the differences, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=path_argument, required=True, help="the folder of `seresnext prepare digits`")
    parser.add_argument("--output", type=path_argument, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 2, 1])
    parser.add_argument("--set", action="append", default=list(_SETTINGS), metavar="KEY=VALUE")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    wait(start(arguments, output / "unbroken", 1), output / "unbroken")
    whole = losses(output / "unbroken")
    machines, first, folder = [], 0, output
    for number, processes in enumerate(arguments.processes, 1):
        folder, end = output / f"machine{number}", max(whole) * number // len(arguments.processes)
        process = start(arguments, folder, processes, f"checkpoint.mirror={(output / 'mirror').absolute()}")
        machines.append((processes, first))
        if number == len(arguments.processes):
            wait(process, folder)
        else:
            lose(process, folder, end)
            first = read_status(folder)["mirrored_step"]
    moved = losses(folder)
    largest = max(abs(moved[step] - whole[step]) for step in whole)
    tops = [read_status(place)["best"]["top1"] for place in (output / "unbroken", folder)]
    print(f"machines (processes, first step): {machines}")
    print(f"largest difference of the loss in {len(whole)} steps: {largest:.1e}; best top-1 {tops[0]} and {tops[1]} %")
    draw(whole, moved, machines, output / "offers.svg")


if __name__ == "__main__":
    run_script(main)
