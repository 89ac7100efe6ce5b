"""The keys of a recipe: name, type, range, default and meaning.

The schema is strict: `'5'` is not 5, `true` is not 1, and an unknown key is an error. An int is accepted as a float.
check.py checks keys against each other. load.py turns a file into a `Recipe`.

The names of models, optimizers, schedules, losses and formats are the names of the tables in the code. The names are
repeated here because this package does not import torch. A test compares each list with the table.
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
    WithJsonSchema,
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
DataFormat = Literal["folder", "imagenet", "shards", "synthetic"]
OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["step", "cosine", "linear"]
LossName = Literal["cross_entropy", "bce"]
Interpolation = Literal["bilinear", "bicubic"]

MAX_DURATION = 10**9
"""The longest duration, in epochs or in steps."""

MAX_PIXELS = 500_000_000
"""The upper limit of `data.max_pixels`: 1.5 GB decoded. The largest phone cameras have 200 million pixels."""

MAX_GLOBAL_SIZE = 10**7
"""The largest global batch."""


def _read_duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    if isinstance(value, str):
        if len(value) > len(f"{MAX_DURATION} optimizer steps"):  # int() of a very long text is slow
            raise ValueError("a duration is short, such as '90ep' (epochs) or '2000st' (optimizer steps)")
        duration = Duration.parse(value)
        if duration.count > MAX_DURATION:
            raise ValueError(f"a duration is at most {MAX_DURATION}")
        return duration
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"a duration needs a unit; write '{value}ep' for epochs or '{value}st' for optimizer steps")
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


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _without_control_characters(text: str) -> str:
    # A checkpoint's JSON may contain such characters. The reader of YAML has already refused them.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("text with a line break or another control character")
    return text


def _not_a_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):  # 1 == True, so a Literal accepts 1
        raise ValueError("expected 'auto', true or false")
    return value


_DURATION_TEXT = (
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(ep|st)$"}),
)
AnyDuration = Annotated[Duration, PlainValidator(_read_duration), *_DURATION_TEXT]
PositiveDuration = Annotated[Duration, PlainValidator(_read_positive_duration), *_DURATION_TEXT]

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
Pair = Annotated[tuple[Positive, Positive], BeforeValidator(_list_to_tuple)]
ChannelMean = Annotated[
    tuple[Annotated[Number, Field(ge=0, le=1)], ...], Field(min_length=1), BeforeValidator(_list_to_tuple)
]
ChannelStd = Annotated[
    tuple[Annotated[Number, Field(gt=0, le=1)], ...], Field(min_length=1), BeforeValidator(_list_to_tuple)
]
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_without_control_characters)]
Stage = Literal["layer0", "layer1", "layer2", "layer3", "layer4"]

ONLY_FOR = {
    "augment.policy.num_ops": ("name", "randaugment", "2"),
    "augment.policy.magnitude": ("name", "randaugment", "9"),
    "data.cache_size": ("format", "shards", None),
    "data.max_bad_images": ("on_error", "substitute", None),
    "data.shuffle_shards": ("format", "shards", None),
    "data.synthetic_images": ("format", "synthetic", "5000"),
    "loss.target_threshold": ("name", "bce", None),
    "optimizer.momentum": ("name", "sgd", None),
    "optimizer.nesterov": ("name", "sgd", None),
    "optimizer.betas": ("name", "adamw", None),
    "optimizer.eps": ("name", "adamw", None),
    "schedule.every": ("name", "step", "30ep"),
    "schedule.factor": ("name", "step", "0.1"),
    "schedule.final_lr": ("name", "cosine linear", None),
}
"""Keys that have an effect for some values of another key in the section only.

For each key: the other key, the values, and an example if these values require the key. check.py refuses a missing key,
and a key without effect whose value is not the default.
"""


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, types are strict, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelSection(Section):
    """The network."""

    name: ModelName = Field(
        description="The network. `seresnext50` is short for `legacy_seresnext50_32x4d`, and so on for 26 and 101. "
        "`seresnext50_32x4d` and `seresnext101_32x4d` are timm's newer networks with padding in the stem's pooling."
    )
    num_classes: int = Field(
        default=1000, ge=2, le=1_000_000, description="Outputs of the classifier: the number of class folders."
    )
    in_channels: int = Field(
        default=3, ge=1, le=1024, description="Channels of an image. Image files are read as RGB: 3."
    )
    drop_rate: Number = Field(default=0.2, ge=0, lt=1, description="Dropout before the classifier.")
    weights: Text | None = Field(
        default=None, description="File of weights to start from. null: random initial weights."
    )
    reset_head: bool = Field(
        default=False, description="Load all of `model.weights` except the classifier, which starts random."
    )
    zero_init_last: bool = Field(
        default=False, description="Initialise the weight of the last BatchNorm in every block to zero."
    )
    drop_path_rate: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Stochastic depth: probability to skip the last block. It falls linearly towards the first block.",
    )
    frozen: Annotated[tuple[Stage, ...], BeforeValidator(_list_to_tuple)] = Field(
        default=(), description="Stages whose loaded weights and BatchNorm statistics do not change."
    )


class ProgressiveSection(Section):
    """Smaller training images at the start. The size grows in steps of 32 pixels. Validation uses `image_size`."""

    min_size: int | None = Field(default=None, ge=16, le=4096, description="Side of a training image at the start.")
    max_size: int | None = Field(
        default=None, ge=16, le=4096, description="Side of a training image at the end. null: `data.image_size`."
    )
    start_ramp: AnyDuration = Field(default=Duration(0, "ep"), description="When the size starts to grow.")
    end_ramp: PositiveDuration | None = Field(default=None, description="When the size reaches `max_size`.")


class DataSection(Section):
    """The images."""

    root: Text = Field(
        default="data/imagenet",
        description="Folder with one folder for each split. For `shards` also an address: `https://...`, `s3://...`.",
    )
    format: DataFormat = Field(
        default="folder",
        description="`folder`: ROOT/SPLIT/CLASS/IMAGE. `imagenet`: the archives of the challenge as downloaded. "
        "`shards`: tar files of `seresnext prepare shards`. `synthetic`: generated images, for benchmarks.",
    )
    cache: Text | None = Field(
        default=None, description="Folder for the index of the data. null: `seresnext` in the user's cache folder."
    )
    cache_size: Number = Field(
        default=200.0,
        gt=0,
        le=1e9,
        description="`shards` only: GB (10^9 bytes) of downloaded shards to keep in the cache folder.",
    )
    shuffle_shards: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="`shards` only: shuffle images within blocks of this many shards, for data larger than the cache. "
        "null: all.",
    )
    train_split: Text = Field(default="train", description="Folder of the training images under the root.")
    val_split: Text = Field(default="val", description="Folder of the validation images under the root.")
    image_size: int = Field(
        default=224, ge=16, le=4096, description="Side of the square input of the network, in pixels."
    )
    progressive: ProgressiveSection | None = Field(
        default=None,
        description="Smaller training images at the start. Each size is compiled once. null: always `image_size`.",
    )
    workers: int = Field(
        default=8, ge=0, le=256, description="Loader processes per rank. 0: load in the training process."
    )
    on_error: Literal["raise", "substitute"] = Field(
        default="raise",
        description="Action for a bad training image. `raise`: stop and name the image. `substitute`: warn, and use "
        "another image of the same class. A bad validation image always stops the run.",
    )
    max_bad_images: int = Field(
        default=100,
        ge=0,
        le=10**9,
        description="`substitute` only: how many bad images are replaced, over all ranks. One more stops the run.",
    )
    mean: ChannelMean = Field(
        default=(0.485, 0.456, 0.406), description="Mean of each channel, for pixels scaled to 0..1."
    )
    std: ChannelStd = Field(
        default=(0.229, 0.224, 0.225), description="Standard deviation of each channel, for pixels scaled to 0..1."
    )
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=MAX_PIXELS, description="Largest image, in pixels. A larger image is an error."
    )
    synthetic_images: int | None = Field(
        default=None, ge=1, le=10**7, description="`synthetic` only: how many images to generate."
    )


class PolicySection(Section):
    """Random operations on a training image, such as shear and posterize."""

    name: Literal["randaugment", "trivialaugment"] = Field(
        default="randaugment", description="The policy. Operations and magnitudes are torchvision's."
    )
    num_ops: int | None = Field(default=None, ge=1, le=14, description="`randaugment` only: operations per image.")
    magnitude: int | None = Field(
        default=None, ge=0, description="`randaugment` only: strength, from 0 to num_magnitude_bins - 1."
    )
    num_magnitude_bins: int = Field(default=31, ge=2, le=10_000, description="Number of magnitudes.")


class ColorJitterSection(Section):
    """Random changes of colour: factors drawn uniformly around 1, applied in random order."""

    brightness: Number = Field(default=0.0, ge=0, description="x: factor from 1 - x to 1 + x. 0: off.")
    contrast: Number = Field(default=0.0, ge=0, description="x: factor from 1 - x to 1 + x. 0: off.")
    saturation: Number = Field(default=0.0, ge=0, description="x: factor from 1 - x to 1 + x. 0: off.")
    hue: Number = Field(default=0.0, ge=0, le=0.5, description="x: rotation of -x to x full turns. 0: off.")


class ErasingSection(Section):
    """Random erasing: a rectangle of a normalised training image is overwritten."""

    probability: Number = Field(default=0.25, gt=0, le=1, description="Probability to erase in an image.")
    scale: Pair = Field(default=(0.02, 0.33), description="Area of the rectangle / area of the image: [low, high].")
    ratio: Pair = Field(default=(0.3, 3.3), description="Height / width of the rectangle: [low, high].")
    value: Annotated[
        float | str,
        PlainValidator(_read_erasing_value),
        WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "random"}]}),
    ] = Field(default=0.0, description="Fill, in normalised pixels. 0: the mean colour. `random`: normal noise.")


class AugmentSection(Section):
    """Augmentation of training images."""

    crop_scale: Pair = Field(
        default=(0.08, 1.0), description="Area of the random crop / area of the image: [low, high]."
    )
    crop_ratio: Pair = Field(default=(0.75, 4 / 3), description="Width / height of the random crop: [low, high].")
    flip: Number = Field(default=0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    interpolation: Interpolation = Field(
        default="bilinear", description="Interpolation for resizing a crop and for the operations of `policy`."
    )
    policy: PolicySection | None = Field(default=None, description="RandAugment or TrivialAugment. null: off.")
    color_jitter: ColorJitterSection | None = Field(
        default=None, description="Random changes of colour, after the policy. null: off."
    )
    erasing: ErasingSection | None = Field(default=None, description="Random erasing. null: off.")
    repeats: int = Field(
        default=1,
        ge=1,
        le=10**7,
        description="Repeated augmentation: copies of each image in a global batch. An epoch then shows fewer images.",
    )


class MixSection(Section):
    """Mixup and CutMix within a micro-batch."""

    mixup: Number = Field(default=0.0, ge=0, description="Alpha of mixup. 0: off.")
    cutmix: Number = Field(default=0.0, ge=0, description="Alpha of CutMix. 0: off.")
    off_after: PositiveDuration | None = Field(default=None, description="When mixing ends. null: never.")


class BatchSection(Section):
    """Batch sizes. Accumulation is global_size / (micro_size x ranks)."""

    global_size: int = Field(
        default=1024, ge=1, le=MAX_GLOBAL_SIZE, description="Images of one optimizer step, over all ranks."
    )
    micro_size: int = Field(
        default=128, ge=1, description="Images of one forward pass on one rank. BatchNorm statistics are over these."
    )


class OptimizerSection(Section):
    """Optimizer."""

    name: OptimizerName = Field(
        default="sgd", description="`sgd`: SGD with momentum. `adamw`: AdamW. Both are torch's."
    )
    lr: Number = Field(
        default=0.6, gt=0, description="Peak learning rate for this global_size. The run never rescales the rate."
    )
    momentum: Number = Field(default=0.9, ge=0, lt=1, description="`sgd` only: momentum.")
    nesterov: bool = Field(default=False, description="`sgd` only: Nesterov momentum.")
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(_list_to_tuple)] = Field(
        default=(0.9, 0.999), description="`adamw` only: decay of the averages of gradients and squared gradients."
    )
    eps: Number = Field(default=1e-8, gt=0, description="`adamw` only: added to the denominator of the update.")
    weight_decay: Number = Field(
        default=1e-4, ge=0, description="`sgd`: L2 penalty, added to the gradient. `adamw`: decoupled decay, times lr."
    )
    decay_norm_and_bias: bool = Field(default=True, description="Apply weight decay to BatchNorm weights and biases.")
    clip_norm: Number | None = Field(
        default=None, gt=0, description="Largest total norm of the gradients; larger ones are scaled down. null: off."
    )
    stop_after_skips: int = Field(
        default=10,
        ge=1,
        description="A step whose loss or gradient is not finite is skipped. This many skips in a row end the run.",
    )


class ScheduleSection(Section):
    """Learning rate schedule."""

    name: ScheduleName = Field(
        default="step", description="Shape of the decay: `step` by step, `cosine` (half a period) or `linear`."
    )
    every: PositiveDuration | None = Field(
        default=None, description="`step` only: interval between decays. 30ep if the recipe has no schedule section."
    )
    factor: Number | None = Field(
        default=None, gt=0, lt=1, description="`step` only: factor of a decay. 0.1 if there is no schedule section."
    )
    warmup: AnyDuration = Field(default=Duration(0, "ep"), description="Linear warmup at the start. 0ep: none.")
    final_lr: Number = Field(default=0.0, ge=0, description="`cosine` and `linear`: learning rate at the end.")


class LossSection(Section):
    """Training loss."""

    name: LossName = Field(
        default="cross_entropy", description="`cross_entropy`: softmax over all classes. `bce`: binary, each class."
    )
    label_smoothing: Number = Field(
        default=0.1, ge=0, lt=1, description="Share of the target that is spread evenly over all classes."
    )
    target_threshold: Number | None = Field(
        default=None, ge=0, lt=1, description="`bce` only: mixed targets above this become 1, others 0. null: off."
    )


class EmaSection(Section):
    """Exponential moving average (EMA) of the weights."""

    decay: Number = Field(default=0.9999, gt=0, lt=1, description="Decay per optimizer step.")
    warmup: bool = Field(default=True, description="Use a smaller decay in the first steps.")


class RecalibrateSection(Section):
    """BatchNorm statistics of the final weights, computed over training images after the last step."""

    images: int = Field(
        default=50_000,
        ge=1,
        le=10**9,
        description="How many images, rounded up to global batches. The images are augmented and not mixed.",
    )


class EvaluationSection(Section):
    """Validation."""

    every: PositiveDuration = Field(default=Duration(1, "ep"), description="Interval between validations.")
    batch_size: int | None = Field(
        default=None, ge=1, le=10**6, description="Images of one forward pass on one rank. null: `batch.micro_size`."
    )
    crop_pct: Number = Field(
        default=0.875, ge=0.1, le=1, description="Side of the centre crop / shorter side of the resized image."
    )
    interpolation: Interpolation = Field(default="bilinear", description="Interpolation for resizing an image.")
    weights: Literal["auto", "model", "ema"] = Field(
        default="auto", description="Weights that choose `best`. auto: the EMA if there is one, else the model."
    )
    recalibrate: RecalibrateSection | None = Field(
        default=None, description="Recompute BatchNorm statistics before the last validation. null: off."
    )


class EarlyStopSection(Section):
    """Early stopping."""

    patience: PositiveDuration = Field(
        default=Duration(10, "ep"), description="Training ends if the best validation is this old."
    )


class CheckpointSection(Section):
    """Checkpoints."""

    every: PositiveDuration = Field(
        default=Duration(1, "ep"),
        description="Interval between checkpoints. A checkpoint is also saved before each validation.",
    )
    keep: int = Field(
        default=3, ge=1, le=10**9, description="How many of the newest checkpoints stay. `last` and `best` always stay."
    )
    keep_every: PositiveDuration | None = Field(
        default=None, description="Interval between checkpoints that are never deleted, such as 10ep. null: none."
    )
    on_failure: Literal["stop", "continue"] = Field(default="stop", description="Action after a failed save.")


class LoggingSection(Section):
    """Logging."""

    every: PositiveDuration = Field(default=Duration(50, "st"), description="Interval between lines of metrics.")


class RuntimeSection(Section):
    """Use of the machine. `auto` is resolved at a fresh start, and the resolved value is stored."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of all randomness.")
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on CUDA 8.0 and newer, fp16 on older GPUs, fp32 on CPU."
    )
    compile: Annotated[Literal["auto", True, False], BeforeValidator(_not_a_number)] = Field(
        default="auto", description="torch.compile. auto: true on CUDA."
    )
    grad_checkpointing: bool = Field(
        default=False,
        description="Recompute blocks in the backward pass: less memory, about a third more time.",
    )
    channels_last: Annotated[Literal["auto", True, False], BeforeValidator(_not_a_number)] = Field(
        default=True, description="NHWC memory layout. auto: true."
    )
    bucket_mb: Number = Field(default=25.0, gt=0, le=1024, description="MiB of gradients that DDP averages at a time.")
    compress_gradients: Literal["none", "bf16"] = Field(
        default="none", description="bf16: DDP sends gradients rounded to bf16, which halves the bytes."
    )
    deterministic: bool = Field(
        default=False, description="Use deterministic kernels only: a repeated run on CUDA gives the same bits."
    )
    loader_timeout: int = Field(
        default=600, ge=1, le=10**7, description="Seconds without a batch after which the run ends with an error."
    )
    collective_timeout: int = Field(
        default=600, ge=1, description="Seconds without an answer after which a rank counts as lost."
    )


class Recipe(Section):
    """A recipe: everything that defines a run."""

    model: ModelSection
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    mix: MixSection = MixSection()
    batch: BatchSection = BatchSection()
    length: PositiveDuration = Field(default=Duration(100, "ep"), description="Length of the training.")
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection(name="step", every=Duration(30, "ep"), factor=0.1)
    loss: LossSection = LossSection()
    ema: EmaSection | None = Field(default=None, description="Moving average of the weights. null: off.")
    evaluation: EvaluationSection = EvaluationSection()
    early_stop: EarlyStopSection | None = Field(
        default=None, description="End before `length` if validation stops improving. null: off."
    )
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    runtime: RuntimeSection = RuntimeSection()
