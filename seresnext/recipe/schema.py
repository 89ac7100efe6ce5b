"""What a recipe may say: every key, its type, its range and its meaning.

The schema is strict: `'5'` is not 5, `true` is not 1, an unknown key is an error. An int is welcome where a float is
expected. What one key means for another is in check.py; how a file becomes this is in load.py.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from seresnext.durations import Duration

ModelName = Literal[
    "seresnext26",
    "seresnext50",
    "seresnext101",
    "legacy_seresnext26_32x4d",
    "legacy_seresnext50_32x4d",
    "legacy_seresnext101_32x4d",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
]
Interpolation = Literal["bilinear", "bicubic"]

MAX_DURATION = 10**9
"""The longest duration a recipe may ask for, in its own unit."""

MAX_PIXELS = 500_000_000
"""The largest image that a recipe may allow: 1.5 GB decoded. The largest cameras of telephones have 200 million."""

MAX_GLOBAL_SIZE = 10**7
"""The largest global batch."""


def _read_duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    if isinstance(value, str):
        if len(value) > len(f"{MAX_DURATION} optimizer steps"):  # more than int() should be asked to read
            raise ValueError("a duration is short, such as '90ep' (epochs) or '2000st' (optimizer steps)")
        duration = Duration.parse(value)
        if duration.count > MAX_DURATION:
            raise ValueError(f"a duration is at most {MAX_DURATION}")
        return duration
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"a duration needs its unit; write '{value}ep' for epochs or '{value}st' for optimizer steps")
    raise ValueError("expected a duration such as '90ep' (epochs) or '2000st' (optimizer steps)")


def _read_positive_duration(value: Any) -> Duration:
    duration = _read_duration(value)
    if duration.count == 0:
        raise ValueError("must be at least 1 epoch or 1 step")
    return duration


def _read_erasing_value(value: Any) -> float | str:
    if value == "random":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError("expected a finite number or 'random'")


def _number_or_auto(value: Any, read_number: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else read_number(value)


def _as_it_is(value: Any) -> Any:
    return value


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _without_control_characters(text: str) -> str:
    if any(
        unicodedata.category(character) in ("Cc", "Cs") for character in text
    ):  # A YAML file has none at this point.
        raise ValueError("text with a line break or another control character")
    return text


def _not_a_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):  # 1 == True, so a Literal would let it in
        raise ValueError("expected 'auto', true or false")
    return value


_DURATION_TEXT = (
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(ep|st)$"}),
)
AnyDuration = Annotated[Duration, PlainValidator(_read_duration), *_DURATION_TEXT]
PositiveDuration = Annotated[Duration, PlainValidator(_read_positive_duration), *_DURATION_TEXT]

Number = Annotated[float, Field(allow_inf_nan=False)]
Pair = Annotated[tuple[Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)]], BeforeValidator(_list_to_tuple)]
ChannelMean = Annotated[
    tuple[Annotated[Number, Field(ge=0, le=1)], ...], Field(min_length=1), BeforeValidator(_list_to_tuple)
]
ChannelStd = Annotated[
    tuple[Annotated[Number, Field(gt=0, le=1)], ...], Field(min_length=1), BeforeValidator(_list_to_tuple)
]
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_without_control_characters)]
Stage = Literal["layer0", "layer1", "layer2", "layer3", "layer4"]


class Section(BaseModel):
    """What all sections share: unknown keys refused, types strict, values frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelSection(Section):
    """Which network."""

    name: ModelName = Field(
        description="Network. The short names mean the `legacy_` names. `seresnext50_32x4d` and `seresnext101_32x4d` "
        "are timm's newer networks, whose stem pools with padding."
    )
    num_classes: int = Field(
        default=1000, ge=2, le=1_000_000, description="Outputs of the classifier; must match the class folders."
    )
    in_channels: int = Field(
        default=3, ge=1, le=1024, description="Channels of an image; image folders are read as RGB, 3."
    )
    drop_rate: Number = Field(default=0.2, ge=0, lt=1, description="Dropout before the classifier.")
    weights: Text | None = Field(
        default=None, description="A file of weights to start from, or null for a fresh network."
    )
    reset_head: bool = Field(
        default=False, description="Start the classifier afresh and load all else from `model.weights`."
    )
    zero_init_last: bool = Field(default=False, description="Start the last BatchNorm weight of every block at zero.")
    drop_path_rate: Number = Field(
        default=0.0, ge=0, lt=1, description="Stochastic depth: chance to skip the last block; earlier ones have less."
    )
    frozen: Annotated[tuple[Stage, ...], BeforeValidator(_list_to_tuple)] = Field(
        default=(), description="Stages that keep their loaded weights and statistics."
    )


class ProgressiveSection(Section):
    """Smaller training images at first. The size rises by steps of 32 pixels, evaluation is at `image_size`."""

    min_size: int | None = Field(default=None, ge=16, le=4096, description="Side of a training image at the start.")
    max_size: int | None = Field(
        default=None, ge=16, le=4096, description="Side of a training image at the end; null: `data.image_size`."
    )
    start_ramp: AnyDuration = Field(default=Duration(0, "ep"), description="`min_size` until here.")
    end_ramp: PositiveDuration | None = Field(default=None, description="`max_size` from here on.")


class DataSection(Section):
    """Where images come from."""

    root: Text = Field(
        default="data/imagenet",
        description="Folder that holds one folder a split; for `shards` also an address, `https://...` or `s3://...`.",
    )
    format: Literal["folder", "imagenet", "shards", "synthetic"] = Field(
        default="folder",
        description="`folder`: ROOT/SPLIT/CLASS/IMAGE; `imagenet`: the challenge's archives as downloaded; `shards`: "
        "tar files of scripts/prepare_shards.py; `synthetic`: made-up images, for benchmarks.",
    )
    cache: Text | None = Field(
        default=None, description="Folder for the index of the data; null: seresnext in the user's cache folder."
    )
    cache_size: Number = Field(
        default=200.0,
        gt=0,
        le=1e9,
        description="GB (10^9 bytes) of shards from a server that are kept in the folder; only for `shards`.",
    )
    shuffle_shards: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Mix the images of so many shards at a time, so that a smaller cache will do; null: of all.",
    )
    train_split: Text = Field(default="train", description="Folder under the root to train on.")
    val_split: Text = Field(default="val", description="Folder under the root to validate on.")
    image_size: int = Field(
        default=224, ge=16, le=4096, description="Side of the square image the network sees, in pixels."
    )
    progressive: ProgressiveSection | None = Field(
        default=None,
        description="Smaller training images at first (each size is compiled anew); null: `image_size` throughout.",
    )
    workers: int = Field(
        default=8, ge=0, le=256, description="Loader processes per rank; 0 loads in the training process."
    )
    on_error: Literal["raise", "substitute"] = Field(
        default="raise",
        description="A training image that cannot be used: `raise` stops the run and names it, `substitute` takes "
        "another of its class and says so. Validation always stops.",
    )
    max_bad_images: int = Field(
        default=100,
        ge=0,
        le=10**9,
        description="How many images `substitute` replaces, over all ranks; one more stops the run.",
    )
    mean: ChannelMean = Field(
        default=(0.485, 0.456, 0.406), description="Mean of each channel, of pixels scaled to 0..1."
    )
    std: ChannelStd = Field(
        default=(0.229, 0.224, 0.225), description="Deviation of each channel, of pixels scaled to 0..1."
    )
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=MAX_PIXELS, description="An image with more pixels than this is an error."
    )
    synthetic_images: int | None = Field(
        default=None, ge=1, le=10**7, description="How many images `format: synthetic` makes up."
    )


class PolicySection(Section):
    """Operations on a training image, such as shearing and posterizing, drawn for each."""

    name: Literal["randaugment", "trivialaugment"] = Field(
        default="randaugment", description="Which; operations and magnitudes are torchvision's."
    )
    num_ops: int | None = Field(default=None, ge=1, le=14, description="`randaugment` only: operations on an image.")
    magnitude: int | None = Field(
        default=None, ge=0, description="`randaugment` only: how strong, 0 to num_magnitude_bins - 1."
    )
    num_magnitude_bins: int = Field(default=31, ge=2, le=10_000, description="How many magnitudes there are.")


class ColorJitterSection(Section):
    """Brightness and the like of a training image, each by a factor drawn uniformly around 1, in a random order."""

    brightness: Number = Field(default=0.0, ge=0, description="Factor in 1 - x .. 1 + x; 0 is off.")
    contrast: Number = Field(default=0.0, ge=0, description="Factor in 1 - x .. 1 + x; 0 is off.")
    saturation: Number = Field(default=0.0, ge=0, description="Factor in 1 - x .. 1 + x; 0 is off.")
    hue: Number = Field(default=0.0, ge=0, le=0.5, description="Turn in -x .. x, of a whole one; 0 is off.")


class ErasingSection(Section):
    """Random erasing: a box of a normalised training image is overwritten."""

    probability: Number = Field(default=0.25, gt=0, le=1, description="Chance that an image has a box erased.")
    scale: Pair = Field(default=(0.02, 0.33), description="Area of the box, as a part of the image: [low, high].")
    ratio: Pair = Field(default=(0.3, 3.3), description="Height by width of the box: [low, high].")
    value: Annotated[
        float | str,
        PlainValidator(_read_erasing_value),
        WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "random"}]}),
    ] = Field(default=0.0, description="What is written, in normalised pixels: 0 is the mean; random: normal noise.")


class AugmentSection(Section):
    """What happens to a training image."""

    crop_scale: Pair = Field(
        default=(0.08, 1.0), description="Area of the random crop, as a part of the image: [low, high]."
    )
    crop_ratio: Pair = Field(default=(0.75, 4 / 3), description="Width by height of the random crop: [low, high].")
    flip: Number = Field(default=0.5, ge=0, le=1, description="Chance of a horizontal flip.")
    interpolation: Interpolation = Field(default="bilinear", description="How a crop is resized, and sheared.")
    policy: PolicySection | None = Field(default=None, description="RandAugment or TrivialAugment, or null for none.")
    color_jitter: ColorJitterSection | None = Field(
        default=None, description="Changes of colour, after the policy; null for none."
    )
    erasing: ErasingSection | None = Field(default=None, description="Random erasing, or null for none.")
    repeats: int = Field(
        default=1,
        ge=1,
        le=10**7,
        description="Repeated augmentation: copies of an image in a global batch; an epoch shows fewer images.",
    )


class MixSection(Section):
    """Mixing pairs of images of a micro-batch."""

    mixup: Number = Field(default=0.0, ge=0, description="Alpha of mixup; 0 is off.")
    cutmix: Number = Field(default=0.0, ge=0, description="Alpha of CutMix; 0 is off.")
    off_after: PositiveDuration | None = Field(
        default=None, description="Mix until here, then no more; null: to the end."
    )


class BatchSection(Section):
    """How many images a step sees. Accumulation = global_size / (micro_size x ranks), derived."""

    global_size: int = Field(
        default=1024, ge=1, le=MAX_GLOBAL_SIZE, description="Images of one optimizer step, over all ranks."
    )
    micro_size: Annotated[
        int,  # Or `auto`, until that is settled.
        Field(ge=1),
        WrapValidator(_number_or_auto),
        PlainSerializer(_as_it_is),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
    ] = Field(
        default=128,
        description="Images of one forward pass on one rank; BatchNorm sees these. auto: the largest power of two that "
        "fits in the memory of the GPU, found before the first step and kept.",
    )


class OptimizerSection(Section):
    """How weights move."""

    name: Literal["sgd"] = Field(default="sgd", description="The optimizer.")
    lr: Number = Field(default=0.6, gt=0, description="Peak learning rate, for the global batch as it is written here.")
    momentum: Number = Field(default=0.9, ge=0, lt=1, description="Momentum.")
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum.")
    weight_decay: Number = Field(default=1e-4, ge=0, description="L2 penalty, added to the gradient.")
    decay_norm_and_bias: bool = Field(default=True, description="Decay BatchNorm weights and all biases too.")
    clip_norm: Number | None = Field(
        default=None, gt=0, description="Scale gradients down to this total norm; null: never."
    )
    stop_after_skips: int = Field(
        default=10,
        ge=1,
        description="How many updates in a row may be skipped because the loss or the gradient is not finite; the last "
        "of them ends the run.",
    )


class ScheduleSection(Section):
    """Learning rate as a function of the step."""

    name: Literal["step", "cosine", "linear"] = Field(
        default="step", description="Falling by steps, along a half cosine, or along a line."
    )
    every: PositiveDuration | None = Field(
        default=None, description="`step` only: how often the rate falls; 30ep without the section."
    )
    factor: Number | None = Field(
        default=None, gt=0, lt=1, description="`step` only: what it is multiplied by; 0.1 without the section."
    )
    warmup: AnyDuration = Field(default=Duration(0, "ep"), description="Linear rise at the start; 0ep is none.")
    final_lr: Number = Field(default=0.0, ge=0, description="`cosine` and `linear`: the learning rate at the end.")


class LossSection(Section):
    """What is minimised."""

    name: Literal["cross_entropy", "bce"] = Field(
        default="cross_entropy", description="Over all classes at once, or binary for each (bce)."
    )
    label_smoothing: Number = Field(default=0.1, ge=0, lt=1, description="Part of the target spread over all classes.")
    target_threshold: Number | None = Field(
        default=None, ge=0, lt=1, description="`bce` only: mixed targets above this become 1, others 0; null: as mixed."
    )


class EmaSection(Section):
    """A moving average of the weights."""

    decay: Number = Field(default=0.9999, gt=0, lt=1, description="Decay of the average, per optimizer step.")
    warmup: bool = Field(default=True, description="Let the decay rise from small at the start.")


class RecalibrateSection(Section):
    """After the last step, BatchNorm statistics of the final weights are measured over training images."""

    images: int = Field(
        default=50_000,
        ge=1,
        le=10**9,
        description="Over how many, rounded up to global batches: augmented and not mixed.",
    )


class EvaluationSection(Section):
    """Validation."""

    every: PositiveDuration = Field(default=Duration(1, "ep"), description="How often to validate during training.")
    batch_size: int | None = Field(
        default=None, ge=1, le=10**6, description="Images of one forward pass on one rank; null: micro_size."
    )
    crop_pct: Number = Field(
        default=0.875, ge=0.1, le=1, description="Side of the centre crop by the resized shorter side."
    )
    interpolation: Interpolation = Field(default="bilinear", description="How an image is resized.")
    weights: Literal["auto", "model", "ema"] = Field(
        default="auto", description="Which weights choose `best`; auto: the average where there is one."
    )
    recalibrate: RecalibrateSection | None = Field(
        default=None, description="BatchNorm statistics measured anew before the last validation; null: as trained."
    )


class EarlyStopSection(Section):
    """The end of a run that does not get better."""

    patience: PositiveDuration = Field(
        default=Duration(10, "ep"), description="Training ends when a validation finds the best one this old."
    )


class CheckpointSection(Section):
    """What is saved when."""

    every: PositiveDuration = Field(
        default=Duration(1, "ep"), description="How often to save; also before each validation."
    )
    keep: int = Field(
        default=3, ge=1, le=10**9, description="How many of the newest checkpoints stay; `last` and `best` always do."
    )
    keep_every: PositiveDuration | None = Field(
        default=None, description="Checkpoints that stay for good: those after every so long, such as 10ep."
    )
    on_failure: Literal["stop", "continue"] = Field(default="stop", description="What a failed save does to the run.")


class LoggingSection(Section):
    """What is written down when."""

    every: PositiveDuration = Field(default=Duration(50, "st"), description="How often to write a line of metrics.")


class RuntimeSection(Section):
    """How the machine is used. Every `auto` is settled once, at a fresh start, and stored."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="The one seed of everything random.")
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on CUDA 8.0 and newer, fp16 on older, fp32 on CPU."
    )
    compile: Annotated[Literal["auto", True, False], BeforeValidator(_not_a_number)] = Field(
        default="auto", description="torch.compile; auto: where it can work."
    )
    grad_checkpointing: bool = Field(
        default=False, description="Compute blocks again in the backward pass: less memory, about a third more time."
    )
    channels_last: Annotated[Literal["auto", True, False], BeforeValidator(_not_a_number)] = Field(
        default=True, description="NHWC memory layout; auto: true, or what `measure` finds."
    )
    measure: bool = Field(
        default=False,
        description="Time a few steps at a fresh start to settle `compile` and `channels_last`, where they are auto.",
    )
    bucket_mb: Number = Field(
        default=25.0,
        gt=0,
        le=1024,
        description="MiB of gradients that ranks average at a time, beside the backward pass.",
    )
    compress_gradients: Literal["none", "bf16"] = Field(
        default="none", description="bf16: ranks send each other gradients rounded to 8 bits, half as many bytes."
    )
    static_graph: bool = Field(
        default=False, description="Spare DDP its search for parameters that a step did not use; there are none here."
    )
    deterministic: bool = Field(default=False, description="Only deterministic kernels; the same bits again on CUDA.")
    loader_timeout: int = Field(
        default=600, ge=1, le=10**7, description="Seconds without a batch after which a hung loader is an error."
    )
    collective_timeout: int = Field(
        default=600, ge=1, description="Seconds after which a process that does not answer ends the run."
    )


class Recipe(Section):
    """A whole recipe."""

    model: ModelSection = Field(description="Which network.")
    data: DataSection = Field(default=DataSection(), description="Where images come from.")
    augment: AugmentSection = Field(default=AugmentSection(), description="What happens to a training image.")
    mix: MixSection = Field(default=MixSection(), description="Mixing pairs of images of a micro-batch.")
    batch: BatchSection = Field(default=BatchSection(), description="How many images a step sees.")
    length: PositiveDuration = Field(default=Duration(100, "ep"), description="How long to train.")
    optimizer: OptimizerSection = Field(default=OptimizerSection(), description="How weights move.")
    schedule: ScheduleSection = Field(
        default=ScheduleSection(name="step", every=Duration(30, "ep"), factor=0.1),
        description="Learning rate as a function of the step.",
    )
    loss: LossSection = Field(default=LossSection(), description="What is minimised.")
    ema: EmaSection | None = Field(default=None, description="A moving average of the weights, or null for none.")
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="Validation.")
    early_stop: EarlyStopSection | None = Field(
        default=None, description="End before `length` when validation stalls; null: never."
    )
    checkpoint: CheckpointSection = Field(default=CheckpointSection(), description="What is saved when.")
    logging: LoggingSection = Field(default=LoggingSection(), description="What is written down when.")
    runtime: RuntimeSection = Field(default=RuntimeSection(), description="How the machine is used.")
