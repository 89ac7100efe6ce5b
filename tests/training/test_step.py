"""An optimizer step against the same step by hand: micro-batch by micro-batch, on copies of the model."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from exactness import narrow
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seresnext.data.augment.mixup import MixupCutmix
from seresnext.data.loading.prefetch import DeviceBatch
from seresnext.distributed import BatchNormStatistics, World
from seresnext.models import SENet
from seresnext.randomness import torch_seed_at
from seresnext.recipe.schema import Recipe
from seresnext.runtime import PRECISIONS
from seresnext.training import step as step_module
from seresnext.training.ema import Ema
from seresnext.training.loss import BinaryCrossEntropy, CrossEntropy
from seresnext.training.optimizer import build_optimizer, optimizer_state
from seresnext.training.step import TrainingStep

SEED, LR, SMOOTHING = 3, 0.1, 0.1


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 5)
    net = nn.Sequential(*layers).double()
    net(torch.randn(8, 3, 6, 6).double() * 3)  # Make the running statistics different from the initial ones.
    return net


@pytest.fixture
def model():
    return network()


def batch(step, replica, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 * step + replica)
    images = torch.randn(4, 3, 6, 6, generator=generator).to(dtype) * (replica + 1)
    return DeviceBatch(images, torch.randint(5, (4,), generator=generator), step, replica, 0.25 * (replica + 1))


def recipe_of(replicas=2, precision="fp64", runtime=(), **optimizer):
    """Return the recipe of a step of micro-batches of 4 images."""
    return Recipe.model_validate(
        {
            "model": {"name": "seresnext26"},
            "batch": {"global_size": 4 * replicas, "micro_size": 4},
            "optimizer": {"lr": 1.0, "weight_decay": 1e-2, **optimizer},
            "runtime": {"seed": SEED, "precision": precision, **dict(runtime)},
        }
    )


def make(model, *recipe, mix=None, ema=None, loss=None, world=None, **settings):
    recipe = recipe_of(*recipe, **settings)
    loss, optimizer = loss or CrossEntropy(SMOOTHING), build_optimizer(model, recipe.optimizer)
    return TrainingStep(model, optimizer, loss, recipe, world or World(), mix, ema)


def run(training_step, steps=1, replicas=2, dtype=torch.float64):
    reports = []
    for step in range(steps):
        batches = iter([batch(step, replica, dtype) for replica in range(replicas)])
        reports.append(training_step(batches, step=step, lr=LR / (step + 1), stop=False).result())
    return reports


def by_hand(model, optimizer, step, replicas=2, clip_norm=None, mix=None):
    """Take a step: average gradients and BatchNorm statistics over copies, each with one micro-batch."""
    losses, copies, correct = [], [], 0
    for replica in range(replicas):
        alone = copy.deepcopy(model)
        images, targets = batch(step, replica)[:2]
        torch.manual_seed(torch_seed_at(SEED, "step", step, replica))
        if mix:
            images, targets = mix(images, targets, step=step, replica=replica)
        logits = alone(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
        labels = targets if targets.ndim == 1 else [target.argmax() for target in targets]
        correct += sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
        for parameter in alone.parameters():
            parameter.grad = None
        loss.backward()
        losses.append(loss.item())
        copies.append(alone)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.stack([alone.get_parameter(name).grad for alone in copies]).mean(0)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = LR / (step + 1)
    optimizer.step()
    for name in ("running_mean", "running_var"):
        getattr(model[1], name).copy_(torch.stack([getattr(alone[1], name) for alone in copies]).mean(0))
    model[1].num_batches_tracked += 1
    return losses, norm, correct


def differences(model, other, rtol=1e-12):
    ours, theirs = model.state_dict(), other.state_dict()
    return [name for name in ours if not torch.allclose(ours[name], theirs[name], rtol=rtol, atol=1e-14)]


MIX = MixupCutmix(num_classes=5, seed=SEED, mixup=0.2, cutmix=1.0, last_step=None)
CASES = [{"replicas": 1}, {"replicas": 3}, {}, {"clip_norm": 0.05}, {"clip_norm": 1e6}, {"mix": MIX}]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_are_those_written_by_hand(model, case):
    """Three steps with the average. The control: clipping and mixing change the weights."""
    other, plain, average = (copy.deepcopy(model) for _ in range(3))
    replicas, ema = case.get("replicas", 2), Ema(model, 0.9, warmup=True)
    training_step, optimizer = make(model, ema=ema, **case), torch.optim.SGD(other.parameters(), LR, 0.9, 0.0, 1e-2)
    reports = run(training_step, 3, replicas)
    for step, (report, decay) in enumerate(zip(reports, (1 / 10, 2 / 11, 3 / 12), strict=True)):
        losses, norm, correct = by_hand(other, optimizer, step, **case)
        assert (report.step, report.stop, report.correct) == (step, False, correct)
        assert report.losses == pytest.approx(losses, rel=1e-12)
        assert report.loss == pytest.approx(sum(losses) / replicas, rel=1e-12)
        assert report.grad_norm == pytest.approx(norm, rel=1e-12)  # Before clipping.
        assert report.data_wait == 0.25 * sum(range(1, replicas + 1))
        for tensor, new in zip(average.state_dict().values(), other.state_dict().values(), strict=True):
            tensor.copy_(decay * tensor + (1 - decay) * new if new.is_floating_point() else new)
    assert differences(model, other) == []
    assert differences(ema.model, average) == []
    assert all(parameter.grad is None for parameter in model.parameters())
    run(make(plain, replicas), 3, replicas)
    assert ("0.weight" in differences(model, plain, rtol=1e-6)) is (case.get("clip_norm") == 0.05 or "mix" in case)
    batches, flags = [batch(3, replica) for replica in range(replicas)], {"save_failed": True, "bad_images": 3}
    report = training_step(iter(batches), step=3, lr=LR, stop=True, **flags).result()
    assert (report.stop, report.save_failed, report.bad_images) == (True, True, 3)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_stages_train_from_a_step_on_as_in_a_loop_of_torch(name):
    """torch's optimizer ignores parameters without gradients, so AdamW's correction of a stage counts from its thaw."""
    torch.manual_seed(0)
    ours = narrow("", num_classes=5, drop_path_rate=0.0).double()
    theirs, frozen = copy.deepcopy(ours), ("layer0", "layer2")
    recipe = recipe_of(name=name)
    optimizer = build_optimizer(ours, recipe.optimizer, later=frozen)
    training_step = TrainingStep(ours, optimizer, CrossEntropy(), recipe, World(), thaw_at=1)
    kind, options = (torch.optim.SGD, {"momentum": 0.9}) if name == "sgd" else (torch.optim.AdamW, {"fused": True})
    reference = kind(theirs.parameters(), lr=LR, weight_decay=1e-2, **options)

    def batch_of(step, replica):
        generator = torch.Generator().manual_seed(100 * step + replica)
        images = torch.randn(4, 3, 48, 48, generator=generator, dtype=torch.float64)
        return batch(step, replica)._replace(images=images)

    training_step.freeze(frozen, *batch_of(9, 9)[:2])
    for step in range(3):
        training_step(iter([batch_of(step, 0), batch_of(step, 1)]), step=step, lr=LR, stop=False).result()
        theirs.train()
        for stage in frozen:
            theirs.get_submodule(stage).requires_grad_(step >= 1).train(step >= 1)
        before, after = copy.deepcopy(theirs.state_dict()), []
        reference.zero_grad()
        for replica in range(2):
            theirs.load_state_dict(before)
            images, labels = batch_of(step, replica)[:2]
            (F.cross_entropy(theirs(images), labels) / 2).backward()
            after.append(copy.deepcopy(theirs.state_dict()))
        for key, value in theirs.state_dict().items():
            value.copy_((after[0][key] + after[1][key]) / 2 if value.is_floating_point() else after[1][key])
        reference.step()
        assert differences(ours, theirs, rtol=1e-9) == []
        changed = {key.partition(".")[0] for key, value in theirs.state_dict().items() if (value != before[key]).any()}
        assert changed.isdisjoint(frozen) is (step < 1)
    assert set(optimizer_state(ours, optimizer)) >= ({"step", "later_step"} if name == "adamw" else set())


def test_randomness_depends_on_step_and_replica_alone(model):
    """Earlier draws from torch's generator do not change dropout; another seed does."""
    once, twice, thrice = (copy.deepcopy(model) for _ in range(3))
    run(make(once))
    torch.randn(1000)
    run(make(twice))
    run(make(thrice, runtime={"seed": SEED + 1}))
    assert differences(once, twice, rtol=0) == []
    assert "5.weight" in differences(once, thrice, rtol=1e-6)


def test_batches_of_another_step_are_refused(model):
    for wrong in ([batch(1, 0), batch(1, 1)], [batch(0, 1), batch(0, 0)]):
        with pytest.raises(AssertionError):
            make(model)(iter(wrong), step=0, lr=LR, stop=False)


def test_half_precision_scales_and_unscales_the_gradient(model):
    model = model.float()
    other = copy.deepcopy(model)
    training_step = make(model, precision="fp16")
    unscaled_step = make(other, precision="fp32")
    assert (training_step.scaler.is_enabled(), unscaled_step.scaler.is_enabled()) == (True, False)
    scaled = run(training_step, dtype=torch.float32)
    plain = run(unscaled_step, dtype=torch.float32)
    assert scaled[0].losses == pytest.approx(plain[0].losses, rel=1e-2)
    assert scaled[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=2e-2)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=0.05, atol=2e-3)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------------ skipped steps


class Bench:
    """A training with an average, and methods to spoil a step."""

    def __init__(self, precision="fp64", layout=torch.contiguous_format, replicas=2, device="cpu", **settings):
        dtype, world = PRECISIONS[precision].weights, World(device=torch.device(device))
        self.model = network().to(device, dtype, memory_format=layout)
        with torch.no_grad():
            self.model[5].bias[0] = -0.0
        self.ema = Ema(self.model, 0.9, warmup=True)
        self.step = make(self.model, replicas, precision, ema=self.ema, world=world, **settings)

    def take(self, step, spoil=None):
        """Take a step and return the result. `spoil` is `loss` or `gradient`, of the last replica."""
        return self.queue(step, spoil).result()

    def queue(self, step, spoil=None):
        """Queue a step and return the pending result."""
        weight, hook = self.model[0].weight, None
        batches = [batch(step, replica, weight.dtype) for replica in self.step.own_replicas]
        if spoil == "loss":
            batches[-1].images[1] = torch.nan
        elif spoil == "gradient":
            hook = weight.register_hook(lambda gradient: gradient / 0)
        batches = [b._replace(images=b.images.to(weight.device), labels=b.labels.to(weight.device)) for b in batches]
        report = self.step(iter(batches), step=step, lr=LR, stop=False)
        if hook:
            hook.remove()
        return report

    def bytes(self):
        """Return the bytes of all tensors that training changes."""
        state = optimizer_state(self.model, self.step.optimizer)
        tensors = {**self.model.state_dict(prefix="model."), **self.ema.model.state_dict(prefix="ema."), **state}
        return {name: tensor.detach().cpu().numpy().tobytes() for name, tensor in tensors.items()}


VARIANTS = {
    "fp64": {},
    "one replica": {"replicas": 1},
    "three replicas": {"replicas": 3},
    "no momentum, fp32": {"momentum": 0.0, "precision": "fp32"},
    "nesterov": {"nesterov": True},
    "adamw": {"name": "adamw"},
    "adamw, fp32": {"name": "adamw", "precision": "fp32"},
    "clipped": {"clip_norm": 0.05},
    "fp32, channels_last": {"precision": "fp32", "layout": torch.channels_last},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "compiled": {"precision": "fp32", "runtime": {"compile": True}},
}
MARKED = [pytest.param(name, marks=[pytest.mark.full] * (name == "compiled")) for name in VARIANTS]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("spoil", ["loss", "gradient"])
@pytest.mark.parametrize("variant", MARKED)
def test_a_spoilt_step_changes_nothing(variant, spoil, device):
    """The later steps equal the steps of a run without the spoilt step, which may be the very first."""
    bench, other = (Bench(**VARIANTS[variant], device=device) for _ in range(2))
    first = 0 if variant == "fp64" else 2
    for step in range(first):
        bench.take(step)
        other.take(step)
    before = bench.bytes()
    report = bench.take(first, spoil)
    assert bench.bytes() == before
    assert report.skipped
    assert math.isfinite(report.loss) == (spoil == "gradient")
    assert not math.isfinite(report.grad_norm)
    assert report.overflowed == (variant == "fp16" and spoil == "gradient")
    if variant == "fp16":  # The scaler lowers the scale after both kinds.
        assert bench.step.scaler.get_scale() == other.step.scaler.get_scale() / 2
        other.step.scaler.load_state_dict(bench.step.scaler.state_dict())
    for step in (first + 1, first + 2):
        assert bench.take(step) == other.take(step)
    assert bench.bytes() == other.bytes() != before


class Operations(TorchDispatchMode):
    """Records the names of the operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_skip_does_not_wait_for_the_device(precision):
    """The host reads no number before it reads the result."""
    bench = Bench(precision=precision, clip_norm=1.0)
    with Operations() as operations:
        for step, spoil in enumerate((None, "loss", "gradient")):
            bench.queue(step, spoil)
        assert "aten::_fused_sgd_" in operations.names
        assert "aten::_local_scalar_dense" not in operations.names
        torch.ones(1).item()
        assert "aten::_local_scalar_dense" in operations.names  # The control: this is how a read shows.


EMA_UPDATE = Ema.update
GUARDS = {
    "statistics": (BatchNormStatistics, "undo_if", lambda self, skip: None),
    "ema": (Ema, "update", lambda self, step, skip: EMA_UPDATE(self, step)),
    "optimizer": (step_module, "skip_if", lambda optimizer, skip: None),
}


@pytest.mark.parametrize("part", ["model.0.weight", "momentum.0.weight", "model.1.running_var", "ema.5.weight"])
def test_each_part_needs_a_guard(monkeypatch, part):
    """The controls: without one of the three guards, the guarded state is spoilt, and only this state."""
    kind = part.partition(".")[0] if "running" not in part else "statistics"
    monkeypatch.setattr(*GUARDS[kind if kind in GUARDS else "optimizer"])
    bench = Bench()
    bench.take(0)
    before = bench.bytes()
    bench.take(1, "loss")
    after = bench.bytes()
    assert after[part] != before[part]
    assert (after["model.1.num_batches_tracked"] != before["model.1.num_batches_tracked"]) == (kind == "statistics")


def test_the_scaler_lowers_the_scale_and_overflows_above_one():
    bench = Bench(precision="fp16")
    bench.take(0)
    state = bench.step.scaler.state_dict()
    bench.step.scaler.load_state_dict({**state, "scale": 2.0**120})
    overflow = bench.take(1)
    assert (overflow.skipped, overflow.overflowed, overflow.loss_scale) == (True, True, 2.0**120)
    assert bench.step.scaler.get_scale() == 2.0**119
    bench.step.scaler.load_state_dict({**state, "scale": 1.0})
    bad = bench.take(2, "gradient")
    assert (bad.skipped, bad.overflowed, bad.loss_scale) == (True, False, 1.0)
    assert bench.take(3, "loss").overflowed is False


# ------------------------------------------------------------------------------------------------ GPUs


def on_gpu(batches):
    return [b._replace(images=b.images.cuda(), labels=b.labels.cuda()) for b in batches]


def steps_without_waiting(training_step, batches):
    """Take a step for each list of batches. After the first step, a wait for the GPU raises an error."""
    batches = [on_gpu(each) for each in batches]
    training_step(iter(batches[0]), step=0, lr=LR, stop=False)  # Libraries initialise.
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        reports = [training_step(iter(each), step=step, lr=LR, stop=False) for step, each in enumerate(batches[1:], 1)]
        read = [report.result() for report in reports]
        with pytest.raises(RuntimeError, match="synchroniz"):  # The control.
            batches[0][0].images.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return read


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "loss", "checkpointing"),
    [
        ("fp32", BinaryCrossEntropy(), False),
        ("bf16", BinaryCrossEntropy(0.0, 0.2), True),
        ("fp16", CrossEntropy(), True),
    ],
)
def test_nothing_waits_for_a_gpu_with_all_techniques(precision, loss, checkpointing):
    network = SENet((1, 1, 1, 1), num_classes=5, drop_rate=0.2, drop_path_rate=0.2, zero_init_last=True).cuda()
    network.grad_checkpointing = checkpointing
    mix, ema = MixupCutmix(5, SEED, 0.2, 1.0, None), Ema(network, 0.9, warmup=True)
    world = World(device=torch.device("cuda", 0))
    training_step = make(network, precision=precision, world=world, clip_norm=1.0, ema=ema, loss=loss, mix=mix)
    batches = [
        [DeviceBatch(torch.randn(4, 3, 64, 64), torch.arange(4), step, replica, 0.0) for replica in range(2)]
        for step in range(4)
    ]
    assert all(math.isfinite(report.loss) for report in steps_without_waiting(training_step, batches))


@pytest.fixture
def world_of_nccl():
    """Rank 0 of two, with a real group of one rank, because NCCL needs a GPU for each rank."""
    device = torch.device("cuda", 0)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    yield World(0, 2, device=device)
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("compress", ["none", "bf16"])
def test_nothing_waits_for_a_gpu_in_a_group(model, compress, world_of_nccl):
    model, runtime = model.float().cuda(), {"compress_gradients": compress}
    training_step = make(model, precision="bf16", world=world_of_nccl, clip_norm=1.0, runtime=runtime)
    batches = [[batch(step, 0, torch.float32)] for step in range(4)]
    training_step.warm_up(*on_gpu(batches[0])[0][:2])
    reports = steps_without_waiting(training_step, batches)
    assert all(report.losses[0] > 0 == report.losses[1] for report in reports)
    assert world_of_nccl.any(True)
    assert world_of_nccl.broadcast("a word") == "a word"


@pytest.mark.gpu
def test_a_result_is_read_while_the_next_step_runs(model):
    training_step = make(model.float().cuda(), precision="fp32", world=World(device=torch.device("cuda", 0)))
    both = on_gpu([batch(0, replica, torch.float32) for replica in range(2)])
    training_step(iter(both), step=0, lr=LR, stop=False)
    report = training_step(iter([b._replace(step=1) for b in both]), step=1, lr=LR, stop=False)
    torch.cuda._sleep(10**10)  # Keep the device busy for seconds, in place of the next step.
    assert math.isfinite(report.result().loss)
    assert not torch.cuda.current_stream().query()


def test_warm_up_changes_nothing(model):
    """The control is the hook: without the restore, the statistics would differ."""
    other, seen = copy.deepcopy(model), []
    hook = model[1].register_forward_hook(lambda layer, *_: seen.append(layer.running_mean.clone()))
    training_step = make(model)
    training_step.warm_up(*batch(9, 1)[:2])
    hook.remove()
    assert len(seen) == 1
    assert not torch.equal(seen[0], other[1].running_mean)
    assert differences(model, other, rtol=0) == []
    assert all(parameter.grad is None for parameter in model.parameters())
    assert run(training_step, 2) == run(make(other), 2)
    assert differences(model, other, rtol=0) == []


def test_ranks_share_the_replicas(model, monkeypatch):
    monkeypatch.setattr(step_module, "wrap_ddp", lambda module, *_: module)
    shares = [list(make(model, 6, world=World(rank, 3)).own_replicas) for rank in range(3)]
    assert shares == [[0, 1], [2, 3], [4, 5]]
