"""What is settled by trying it: the micro-batch that fits, and the fastest memory format and compilation."""

import math
from unittest.mock import Mock

import pytest
import torch
from torch._inductor.exc import InductorError

from seresnext.distributed import World
from seresnext.errors import RecipeError, UsageError
from seresnext.metrics.console import Console
from seresnext.recipe import check_world, load_recipe
from seresnext.run import trials
from seresnext.run.assemble import Run, resolve_auto

SYNTHETIC = ["data.format=synthetic", "data.synthetic_images=64", "data.workers=0", "data.image_size=40"]
TINY = [*SYNTHETIC, "model.name=seresnext26", "batch.global_size=8", "batch.micro_size=4", "runtime.precision=fp32"]


def values(*changes):
    return load_recipe("digits", [*TINY, "runtime.channels_last=auto", *changes]).values


class TwoRanks(World):
    """A world of which only this rank is here; `gather` adds what the other one would say."""

    def __init__(self, other):
        super().__init__(0, 2)
        object.__setattr__(self, "other", other)

    def gather(self, value):
        return [value, self.other(value)]


# ------------------------------------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 127, 128, 129, 10**6])
def test_the_largest_that_fits(limit):
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    assert trials.largest_that_fits(sizes, fits) == max((size for size in sizes if size <= limit), default=None)
    assert len(tried) == len(set(tried)) <= 4
    assert trials.largest_that_fits([], fits) is None


@pytest.mark.parametrize(
    ("total", "world", "changes", "expected"),
    [
        (1024, 1, [], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]),
        (1024, 8, [], [1, 2, 4, 8, 16, 32, 64, 128]),
        (96, 4, [], [1, 2, 4, 8]),
        (15, 3, [], [1]),
        (16, 2, ["mix.mixup=0.2"], [2, 4, 8]),  # One image cannot be mixed.
        (16, 2, ["data.image_size=32"], [2, 4, 8]),  # Of one so small the last stage leaves a single pixel.
        (15, 3, ["data.image_size=32"], []),
    ],
)
def test_sizes_that_the_recipe_allows(total, world, changes, expected):
    recipe = values(f"batch.global_size={total}", "batch.micro_size=auto", *changes)
    assert trials.micro_sizes(recipe, world) == expected
    for size in expected:  # An independent judge.
        given = [*SYNTHETIC, f"batch.global_size={total}", f"batch.micro_size={size}", *changes]
        check_world(load_recipe("digits", given).recipe, world)


@pytest.fixture
def memory(monkeypatch):
    """`memory(24)`: training with more than 24 images runs out of memory, as torch says it. Gives what was tried."""

    def limit(images):
        tried = []

        def train(recipe, world, steps):
            tried.append(recipe["batch"]["micro_size"])
            if tried[-1] > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [0.1] * steps

        monkeypatch.setattr(trials, "_time_steps", train)
        monkeypatch.setattr(
            trials, "_fits", lambda recipe, world: not trials.out_of_memory(lambda: train(recipe, world, 2))
        )
        return tried

    return limit


def test_micro_batches_fill_the_memory_and_the_global_batch_stays(memory):
    tried, said = memory(24), []
    asked = values("batch.global_size=128", "batch.micro_size=auto")
    chosen = trials.choose_by_trial(asked, asked, World(), said.append)
    assert chosen == {**asked, "batch": {"global_size": 128, "micro_size": 16}}
    assert {16, 32} <= set(tried)
    assert said == ["batch.micro_size: auto is 16, the largest power of two that fits; 8 micro-batches a step"]


@pytest.mark.parametrize(("others", "expected"), [(4, 4), (16, 16), (64, 16)])
def test_ranks_agree_on_what_fits_on_all(memory, others, expected):
    memory(24)
    asked = values("batch.global_size=128", "batch.micro_size=auto")
    chosen = trials.choose_by_trial(asked, asked, TwoRanks(lambda own: others), lambda line: None)
    assert chosen["batch"]["micro_size"] == expected


@pytest.mark.parametrize("others", [lambda own: own, lambda own: None])
def test_when_nothing_fits_it_says_so(memory, others):
    memory(0 if others(1) else 24)
    asked = values("batch.global_size=128", "batch.micro_size=auto")
    with pytest.raises(UsageError, match=r"batch\.micro_size: auto found that not even micro-batches of 1 fit"):
        trials.choose_by_trial(asked, asked, TwoRanks(others), lambda line: None)


def test_when_no_power_of_two_is_allowed_it_says_so(memory):
    tried = memory(24)
    asked = values("batch.global_size=15", "batch.micro_size=auto", "data.image_size=32")
    with pytest.raises(UsageError, match=r"none that divides the 15 images of a process is one that the recipe allows"):
        trials.choose_by_trial(asked, asked, World(), lambda line: None)
    assert tried == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        InductorError(torch.OutOfMemoryError("CUDA out of memory"), None),
        MemoryError(),
    ],
    ids=["torch", "cudnn", "cublas", "engines", "inductor", "host"],
)
def test_a_lack_of_memory_is_known_by_whoever_met_it(error):
    def too_large():
        raise error

    assert trials.out_of_memory(too_large)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    for words in (
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED",
    ):
        broken = Mock(side_effect=RuntimeError(words))
        with pytest.raises(RuntimeError, match=words):
            trials.out_of_memory(broken)
    assert not trials.out_of_memory(lambda: None)


def test_a_number_is_not_tried(memory):
    tried = memory(2)
    asked = values()
    assert trials.choose_by_trial(asked, asked, World(), lambda line: None) == asked
    assert tried == []


def test_without_a_gpu_auto_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UsageError, match=r"there is none here; set it to a number, such as batch\.micro_size=32"):
        resolve_auto(values("batch.micro_size=auto"), {}, World())
    settled = values()  # But a run that has settled it goes on.
    assert resolve_auto(values("batch.micro_size=auto"), settled, World())[0]["batch"]["micro_size"] == 4
    on_gpu, _ = resolve_auto(values("batch.micro_size=auto"), {}, World(device=torch.device("cuda")))
    assert on_gpu["batch"]["micro_size"] == "auto"  # For a trial.


def test_auto_waits_for_the_processes_to_divide_the_global_batch():
    recipe = load_recipe("digits", [*TINY, "batch.global_size=9", "batch.micro_size=auto"]).recipe
    check_world(recipe, 3)
    with pytest.raises(RecipeError, match=r"9 images cannot be spread over 2 processes; set batch\.global_size=8"):
        check_world(recipe, 2)


@pytest.mark.gpu
def test_on_a_gpu_the_chosen_size_trains_and_twice_as_much_does_not():
    torch.cuda.set_per_process_memory_fraction(0.1)
    try:
        asked = values(
            "batch.global_size=65536", "batch.micro_size=auto", "data.image_size=224", "runtime.compile=false"
        )
        world = World(device=torch.device("cuda", 0))
        settled, _ = resolve_auto(asked, {}, world)
        chosen = trials.choose_by_trial(settled, asked, world, print)
        size = chosen["batch"]["micro_size"]
        assert math.isfinite(trials.seconds_per_step(chosen, world))
        too_large = {**chosen, "batch": {"global_size": 65536, "micro_size": 2 * size}}
        assert not trials._fits(too_large, world)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# ------------------------------------------------------------------------------------------------ the fastest


@pytest.fixture
def times(monkeypatch):
    """`times({(channels_last, compile): seconds})` are what trials measure; gives the candidates in turn."""

    def pretend(seconds):
        tried = []

        def measure(recipe, world):
            tried.append((recipe["runtime"]["channels_last"], recipe["runtime"]["compile"]))
            return seconds[tried[-1]]

        monkeypatch.setattr(trials, "seconds_per_step", measure)
        monkeypatch.setattr(trials, "resolve_compile", lambda requested, device: (requested, None))
        return tried

    return pretend


SECONDS = {(True, False): 0.4, (False, False): 0.3, (True, True): 0.2, (False, True): 0.5}


def choose(*changes, world=None):
    asked, said = values("runtime.measure=true", *changes), []
    settled, _ = resolve_auto(asked, {}, World())
    return trials.choose_by_trial(settled, asked, world or World(), said.append), said


def test_the_fastest_is_chosen_recorded_and_said(times):
    tried = times(SECONDS)
    chosen, said = choose()
    assert set(tried) == set(SECONDS)
    runtime = chosen["runtime"]
    assert (runtime["channels_last"], runtime["compile"], runtime["measure"]) == (True, True, False)
    assert "runtime.measure: channels_last false, compile false: 0.3 s a step" in said
    assert len(said) == 5
    assert said[-1] == "runtime.measure: chosen channels_last true, compile true"


@pytest.mark.parametrize(
    ("changes", "candidates", "expected"),
    [
        (["runtime.compile=false"], {(True, False), (False, False)}, (False, False)),
        (["runtime.channels_last=false"], {(False, False), (False, True)}, (False, False)),
        (["runtime.grad_checkpointing=true"], {(True, False), (False, False)}, (False, False)),
    ],
)
def test_what_a_recipe_gives_is_not_tried_otherwise(times, changes, candidates, expected):
    tried = times(SECONDS)
    runtime = choose(*changes)[0]["runtime"]
    assert set(tried) == candidates
    assert (runtime["channels_last"], runtime["compile"]) == expected


def test_the_slowest_rank_decides(times):
    times(SECONDS)
    slow = {0.2: 0.9}  # Compiled code is slow on the other one.
    runtime = choose(world=TwoRanks(lambda own: slow.get(own, own)))[0]["runtime"]
    assert (runtime["channels_last"], runtime["compile"]) == (False, False)


def test_what_does_not_fit_in_memory_is_not_chosen(times):
    times({**SECONDS, (True, True): math.inf})
    chosen, said = choose()
    assert chosen["runtime"]["channels_last"] is False
    assert "runtime.measure: channels_last true, compile true: out of memory" in said
    times(dict.fromkeys(SECONDS, math.inf))
    with pytest.raises(UsageError, match=r"no candidate fits in memory; set batch\.micro_size lower"):
        choose()


def test_nothing_is_tried_unasked(times):
    tried = times(SECONDS)
    asked = values()
    settled, _ = resolve_auto(asked, {}, World())
    assert trials.choose_by_trial(settled, asked, World(), lambda line: None) == settled
    assert tried == []
    assert settled["runtime"]["channels_last"] is True


def test_a_resumed_run_keeps_the_choice(times):
    times(SECONDS)
    chosen, _ = choose()
    tried = times(dict(zip(SECONDS, reversed(SECONDS.values()), strict=True)))
    asked = values("runtime.measure=true")
    settled, _ = resolve_auto(asked, chosen, World())
    assert trials.choose_by_trial(settled, asked, World(), lambda line: None) == chosen
    assert tried == []


def test_trials_leave_no_trace_but_the_choice(monkeypatch):
    """Real steps, whose times are made up so that the choice is known."""
    real, measured = trials.seconds_per_step, []

    def measure(recipe, world):
        measured.append(real(recipe, world))
        return float(recipe["runtime"]["channels_last"])

    monkeypatch.setattr(trials, "_TIMED_STEPS", 1)
    monkeypatch.setattr(trials, "seconds_per_step", measure)
    console = Console(enabled=False)
    tried = Run(values("runtime.measure=true", "runtime.compile=false"), {}, World(), console)
    assert len(measured) == 2
    assert all(0 < seconds < 60 for seconds in measured)
    plain = Run(values("runtime.channels_last=false", "runtime.compile=false"), {}, World(), console)
    assert tried.values == plain.values
    assert len(measured) == 2
    for name, tensor in tried.model.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name]), name
        assert tensor.stride() == plain.model.state_dict()[name].stride()
    assert torch.equal(torch.get_rng_state(), _state_after(lambda: Run(plain.values, {}, World(), console)))
    other = Run(values("runtime.seed=1", "runtime.compile=false"), {}, World(), console)  # The control.
    assert not torch.equal(other.model.layer0.conv1.weight, plain.model.layer0.conv1.weight)


def _state_after(action):
    action()
    return torch.get_rng_state()
