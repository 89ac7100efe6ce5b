"""Readers of texts: recipes, `--set`, the files of a run folder, and the names of checkpoints."""

import fcntl
import functools
import json
import os
from pathlib import Path
from random import Random

from fuzzing.harness import OTHER_ENTRIES, Files, Reader, WrongResult, bytes_of
from fuzzing.mutations import TEXTS, boundary, mutate_bytes, mutate_items, mutate_json_file, mutate_lines, strange_bytes
from fuzzing.weights import READERS as WEIGHTS
from fuzzing.weights import STEP

from seresnext.checkpoint import store
from seresnext.distributed import World
from seresnext.errors import CheckpointError, RecipeError, UsageError
from seresnext.metrics.console import Console
from seresnext.metrics.logger import RunLogger
from seresnext.metrics.status import read_status, update_status
from seresnext.recipe.load import load_recipe, recipe_from_values, to_values
from seresnext.recipe.show import diff, print_recipe
from seresnext.run.folder import RunFolder, as_usage_error
from seresnext.run.resume import find_checkpoint

# ------------------------------------------------------------------------------------------------ recipes

_RECIPE = """\
base: base.yaml
model: {name: seresnext26, num_classes: 3}
optimizer:
  lr: 1e-2
  weight_decay: 0.0001
augment:
  crop_scale: [0.7, 1.0]
schedule: {name: cosine, warmup: 2st}
length: 40st
"""
_BASE = """\
# A recipe for others to be based on.
data:
  root: "data/x"
  image_size: 32
  workers: 1
batch: {global_size: 4, micro_size: 2}
mix:
  mixup: 0.2
  cutmix: 1.0
ema: {decay: 0.9}
evaluation:
  every: 1ep
runtime: {precision: fp32}
"""
_YAML_VALUES = (
    "yes", "off", "~", "null", "010", "0x10", "1_000", "12:30", "1e999", "-1e-400", ".inf", "-.INF", ".nan", "1e5",
    "&a 1", "*a", "!!python/object:os.system x", "!!int '3'", "<<", "'", '"', '"\\UFFFFFFFF"', '"\\ud800"', '"\\0"',
    "|", ">-", "|9", "[", "]", "{", "}", "{a: b", "[" * 12 + "]" * 12, "[" * 5000, "{a: " * 2000, "[1, 2, 3]", "a: b",
    "{? a : b}", "- x", "? x", "# comment", "1 # comment", "2001-01-01", "3ep", "-1st", "9" * 99, "9" * 4999 + "st",
    "@x", "`x`", "%x", "\u2028", "\x85", "\ufeff", "x" * 5000, "[" + "1," * 2000 + "]", "auto", "true", "0",
    "../base.yaml", *TEXTS,
)  # fmt: skip
_YAML_LINES = (
    "---", "...", "%YAML 1.1", "%YAML 9999999999999999999999.1", "%TAG ! x", "? [a]", "<<: *a", "- 1", "  - 1", "\t",
    "", "base: recipe.yaml", "base: [base.yaml, base.yaml]", "base: /dev/zero", "base: .", "model: 3",
    "optimizer: [1]", "optimizer: {lr: 1, lr: 2}", "data: {root: " + "x" * 300 + "}", "a: 1", "? a\n: b",
    "# " + "x" * 200, '"a\\\n  b": 1',
)  # fmt: skip
_KEYS = (
    "optimizer.lr", "model.name", "data.mean", "batch", "length", "ema", "augment.policy", "data.root", "mix", "base",
    "optimizer", "optimizer.lr.x", "optimizr.lr", "a" * 200, "", ".", "..", "model.weights", "runtime.seed",
    "ema.decay",
)  # fmt: skip


def _recipes() -> list[Files]:
    alone = _BASE + _RECIPE.partition("\n")[2].replace("ema: {decay: 0.9}", "ema: null")
    flow = (
        '{"model": {"name": "seresnext50"}, "length": "3ep", "optimizer": {"lr": 0.1}, "batch": {"global_size": 256}}\n'
    )
    files = [{"recipe.yaml": _RECIPE, "base.yaml": _BASE}, {"recipe.yaml": alone}, {"recipe.yaml": flow}]
    return [{name: text.encode() for name, text in recipe.items()} for recipe in files]


def _mutate_recipe(draws: Random, files: Files, other: Files) -> Files:
    name = draws.choice(list(files))
    data = bytes_of(files, name)
    if draws.random() < 0.3:
        return {**files, name: mutate_bytes(draws, data, bytes_of(other, "recipe.yaml"))}
    text = mutate_lines(draws, data.decode(), _YAML_VALUES, _YAML_LINES)
    return {**files, name: text.encode("utf-8", "surrogatepass")}


def _load_recipe(folder: Path, _: Files) -> None:
    """Load a recipe. The printed recipe must have the same values."""
    loaded = load_recipe(folder / "recipe.yaml")
    if recipe_from_values(to_values(loaded.recipe), "the values") != loaded.recipe:
        raise WrongResult("the values of the recipe are another recipe")
    printed = folder / "printed.yaml"
    printed.write_text(print_recipe(loaded), encoding="utf-8")
    if changes := diff(to_values(load_recipe(printed).recipe), to_values(loaded.recipe)):
        raise WrongResult(f"printed, the recipe has other values: {changes[0]}")


def _overrides() -> list[Files]:
    words = ("optimizer.lr=0.5", "ema=null", "data.mean=[0.1, 0.2, 0.3]", "mix={mixup: 0.5}", "data.root=a b/c")
    return [{"set": word.encode()} for word in words]


def _mutate_override(draws: Random, files: Files, other: Files) -> Files:
    word = bytes_of(files, "set")
    key, _, value = word.decode().partition("=")
    match draws.choice(("key", "value", "value", "value", "bytes")):
        case "key":
            word = f"{draws.choice(_KEYS)}={value}".encode()
        case "value":
            key = draws.choice((key, draws.choice(_KEYS)))
            value = draws.choice((draws.choice(_YAML_VALUES), str(boundary(draws)), value + draws.choice(_YAML_VALUES)))
            word = f"{key}={value}".encode("utf-8", "surrogatepass")
        case _:
            word = mutate_bytes(draws, word, bytes_of(other, "set"))
    return {"set": word.replace(b"\0", b"")}  # An argument of a process has no NUL.


def _override(folder: Path, files: Files) -> None:
    path = folder / "recipe.yaml"
    path.write_text(_BASE + _RECIPE.partition("\n")[2])
    loaded = load_recipe(path, [os.fsdecode(bytes_of(files, "set"))])
    if recipe_from_values(to_values(loaded.recipe), "the values") != loaded.recipe:
        raise WrongResult("the values of the recipe are another recipe")


# ------------------------------------------------------------------------------------------------ run folder


def _run_folders() -> list[Files]:
    status = {
        "state": "preempted", "step": 8, "reason": "stopped", "pid": 1, "host": "a", "updated": "x", "world_size": 2,
    }  # fmt: skip
    events = [
        {"event": "train", "step": 5, "epoch": 1.25, "loss": 2.5, "skipped": 0, "lr": 0.1, "images_per_second": 9.0},
        {"event": "validate", "step": 8, "epoch": 2.0, "loss": 2.0, "top1": 50.0, "top5": 99.0, "weights": "ema"},
        {"event": "train", "step": 10, "epoch": 2.5, "loss": None, "skipped": 1, "lr": 0.1, "images_per_second": 9.0},
    ]
    files = {
        "status.json": json.dumps(status, indent=2) + "\n",
        "environment.json": json.dumps({"command": ["train.py"], "launch": ["x a:1:2", None], "threads": 2}) + "\n",
        "metrics.jsonl": "".join(json.dumps(event) + "\n" for event in events),
        "recipe.yaml": _BASE,
        "lock": "process 1 on a",
        "log.txt": "2020-01-01 00:00:00 finished\n",
    }
    whole = {name: text.encode() for name, text in files.items()}
    running = whole["status.json"].replace(b"preempted", b"running")
    return [whole, {**whole, "status.json": running}, {"status.json": whole["status.json"]}]


def _mutate_run_folder(draws: Random, files: Files, other: Files) -> Files:
    files = dict(files)
    for _ in range(draws.choice((1, 1, 2))):
        name = draws.choice(list(files))
        data = files[name]
        if draws.random() < 0.05 or isinstance(data, str):
            files[name] = draws.choice(OTHER_ENTRIES)
        elif name == "metrics.jsonl":
            lines = data.splitlines(keepends=True)
            changed = mutate_items(draws, lines, lambda line: mutate_json_file(draws, line) + b"\n")
            files[name] = draws.choice((b"".join(changed), mutate_bytes(draws, data)))
        elif name.endswith(".json"):
            files[name] = mutate_json_file(draws, data)
        else:
            files[name] = mutate_bytes(draws, data)
    return files


def _start_in(folder: Path, files: Files) -> None:
    """Read the files of a run folder as the start of a training does, also while another training holds the folder."""
    world = World()
    held = None
    if isinstance(files.get("lock"), bytes) and len(files["lock"]) % 5 == 0:
        held = (folder / "lock").open("rb")
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        update_status(folder, state="failed", reason="refused")
        run_folder = RunFolder(folder, world)
        run_folder.open()
        read_status(folder)
        run_folder.is_restart(["x a:1:2"])
        run_folder.accept()
        update_status(folder, step=STEP)
        logger = RunLogger(folder, Console(enabled=True, log=folder / "log.txt"), world, load_recipe("digits").recipe)
        logger.open(STEP, STEP)
        logger.write({"event": "train", "step": 9, "epoch": 2.25, "loss": 1.0})
        logger.close()
    finally:
        if held:
            held.close()
    for line in (folder / "metrics.jsonl").read_bytes().splitlines()[:-1]:
        if json.loads(line)["step"] > STEP:
            raise WrongResult("a line of a later step is left in metrics.jsonl")


# ------------------------------------------------------------------------------------------------ names of checkpoints

_NAMES = (
    *(f"step-{step}.safetensors" for step in ("00000004", "00000016", "100000000", "8", "00000000", "-0000008")),
    "step-" + "9" * 200 + ".safetensors", "step-0000000\u0661.safetensors", "step-00000008.safetensors.corrupt",
    "step-00000008.safetensors.superseded", ".step-00000008.safetensors.tmp", ".last.safetensors.tmp",
    "last.safetensors", "best.safetensors", "best.safetensors.superseded", "notes",
)  # fmt: skip


@functools.cache
def _whole() -> bytes:
    return bytes_of(WEIGHTS["checkpoint"].seeds()[1], "step-00000008.safetensors")


def _step_files() -> list[Files]:
    step, last = {"step-00000008.safetensors": _whole()}, {"last.safetensors": _whole()}
    return [{**step, **last}, step, {**last, "x": "folder"}]


def _mutate_step_files(draws: Random, files: Files, other: Files) -> Files:
    files = dict(files)
    for _ in range(draws.choice((1, 2, 4))):
        name = draws.choice((*_NAMES, *files))
        damaged = mutate_bytes(draws, _whole())
        contents = (damaged, damaged[: draws.randrange(200)], strange_bytes(draws), _whole(), _whole())
        files[name] = draws.choice((f"link:{draws.choice((*files, name))}", *OTHER_ENTRIES, *contents))
    return files


def _find_newest(folder: Path, files: Files) -> None:
    """Find the checkpoint of a resume as the start of a training does, and rename and prune the others."""
    world, console = World(), Console(enabled=True)
    names = ("last.safetensors", "best.safetensors", "step-00000008.safetensors")
    kept = [name for name in names if files.get(name) == _whole()]
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    for name in files:
        (folder / name).rename(checkpoints / name)
    with as_usage_error(folder):
        store.remove_temporary(checkpoints)
    try:
        saved = find_checkpoint(checkpoints, "auto", world, console.print)
    except CheckpointError:
        if not kept:
            raise
        saved = None
    if saved is None:
        if kept:
            raise WrongResult(f"no checkpoint is found, and {', '.join(kept)} is whole")
        return
    with as_usage_error(folder):
        store.mark_superseded(checkpoints, beyond=saved.metadata.step)
        store.prune(checkpoints, keep=1)
    if kept and not any((checkpoints / name).exists() for name in kept):
        raise WrongResult(f"{', '.join(kept)} was whole, and is gone")


READERS = {
    "recipe": Reader(_recipes, _mutate_recipe, _load_recipe, (RecipeError,)),
    "set": Reader(_overrides, _mutate_override, _override, (RecipeError,)),
    "run_folder": Reader(_run_folders, _mutate_run_folder, _start_in, (UsageError,)),
    "step_files": Reader(_step_files, _mutate_step_files, _find_newest, (CheckpointError, UsageError)),
}
