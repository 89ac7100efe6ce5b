"""Collectives and agreement: a world of one returns its input, and two processes agree over gloo."""

import json

import pytest
import torch

from seresnext.distributed import World
from seresnext.errors import CheckpointError, DataError, Failure, OutOfMemory, RecipeError, TrainingStopped

# ------------------------------------------------------------------------------------------------ a world of one


def test_a_world_of_one_returns_its_input():
    world, tensor, value = World(), torch.tensor([1, 2]), {"a": [1]}
    assert world.sum_(tensor) is tensor
    assert tensor.tolist() == [1, 2]
    assert [world.any(flag) for flag in (True, False)] == [True, False]
    assert world.broadcast(value) is value
    assert world.gather(value) == [value]


@pytest.mark.parametrize("failure", [DataError("no images"), CheckpointError("damaged"), RecipeError(["one", "two"])])
def test_in_a_world_of_one_a_failure_keeps_class_and_message(failure):
    with pytest.raises(Failure) as caught, World().agreeing():
        raise failure
    assert type(caught.value) is type(failure)
    assert str(caught.value) == str(failure)
    assert caught.value.exit_code == failure.exit_code
    assert caught.value.is_shared
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_an_error_about_memory_becomes_a_failure_with_advice(error):
    with pytest.raises(OutOfMemory, match=r"\(.*lower batch\.micro_size"), World().translate_errors():
        raise error


@pytest.mark.parametrize("block", [World.translate_errors, World.agreeing])
@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
def test_other_errors_do_not_change(block, error):
    with pytest.raises(type(error)) as caught, block(World()):
        raise error
    assert caught.value is error


# ------------------------------------------------------------------------------------------------ two processes

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from seresnext.distributed import open_world
from seresnext.errors import CheckpointError, DataError, Failure, RecipeError, TrainingStopped


def agree(world, failures):
    try:
        with world.agreeing():
            if world.rank in failures:
                raise failures[world.rank]
            return f"result {world.rank}"
    except Failure as failure:
        return [type(failure).__name__, str(failure), failure.is_shared, failure.exit_code]


with open_world() as world:
    rank = world.rank
    report = {
        "world": [world.rank, world.size, world.is_first, world.device.type],
        "sum": world.sum_(torch.tensor([2**60 + rank, rank])).tolist(),
        "sum of floats": world.sum_(torch.tensor([0.5 * rank])).tolist(),
        "any": [world.any(flag) for flag in (False, rank == 0, rank == 1, True)],
        "broadcast": world.broadcast({"from": rank, "list": [rank, None]}),
        "gather": world.gather(f"value {rank}"),
        "nobody fails": agree(world, {}),
        "rank 0 fails": agree(world, {0: DataError("rank 0 has no images")}),
        "rank 1 fails": agree(world, {1: CheckpointError("rank 1 is damaged")}),
        "both fail": agree(world, {0: TrainingStopped("zero"), 1: DataError("one")}),
        "recipe": agree(world, {1: RecipeError(["first", "second"])}),
        "afterwards": world.gather(rank),
    }
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(report))
assert not torch.distributed.is_initialized()
"""


def test_two_processes_agree(run_world, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    result = run_world(2, [script, tmp_path])
    assert result.returncode == 0, result.output
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    assert [report.pop("world") for report in reports] == [[0, 2, True, "cpu"], [1, 2, False, "cpu"]]
    assert [report.pop("nobody fails") for report in reports] == ["result 0", "result 1"]
    assert reports[0] == reports[1]
    report = reports[0]
    assert report["sum"] == [2**61 + 1, 1]  # A float of 64 bits has 53 bits of digits.
    assert report["sum of floats"] == [0.5]
    assert report["any"] == [False, True, True, True]
    assert report["broadcast"] == {"from": 0, "list": [0, None]}
    assert report["gather"] == ["value 0", "value 1"]
    assert report["rank 0 fails"] == ["DataError", "rank 0 has no images", True, DataError.exit_code]
    assert report["rank 1 fails"] == ["CheckpointError", "rank 1 is damaged", True, CheckpointError.exit_code]
    assert report["both fail"] == ["TrainingStopped", "zero", True, TrainingStopped.exit_code]
    assert report["recipe"] == ["RecipeError", str(RecipeError(["first", "second"])), True, RecipeError.exit_code]
    assert report["afterwards"] == [0, 1]
