"""The keys of a recipe: name, type, range, default and meaning.

The schema is strict: `'5'` is not 5, `true` is not 1, and an unknown key is an error. An int is accepted as a float.
check.py checks keys against each other. load.py turns a file into a `Recipe`.

The names in the tables of the code are repeated here, because this package imports no torch. A test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic.functional_validators import WrapValidator

from seresnext.durations import Duration
from seresnext.errors import shorten
from seresnext.files import expand_home
from seresnext.recipe.reader import has_control

ModelName = Literal[
    "seresnext26", "seresnext50", "seresnext101", "legacy_seresnext26_32x4d", "legacy_seresnext50_32x4d",
    "legacy_seresnext101_32x4d", "seresnext50_32x4d", "seresnext101_32x4d",
]  # fmt: skip
DataFormat = Literal["folder", "imagenet", "shards", "synthetic"]
OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["step", "cosine", "linear"]
LossName = Literal["cross_entropy", "bce"]
Interpolation = Literal["bilinear", "bicubic"]
SinkName = Literal["tensorboard", "wandb", "mlflow"]

AUTO_CLASSES = 0  # the value of `model.num_classes: auto` until the data is opened

MAX_DURATION = 10**9  # epochs or steps
MAX_GLOBAL_SIZE = 10**7


def _read_duration(value: Any) -> Duration:
    duration = value if isinstance(value, Duration) else Duration.parse(str(value))
    if duration.count > MAX_DURATION:
        raise ValueError(f"a duration is at most {MAX_DURATION}, found {shorten(str(value))}")
    return duration


def _positive(duration: Duration) -> Duration:
    if duration.count == 0:
        raise ValueError(f"must be at least 1 epoch or 1 step, found {duration}")
    return duration


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_erasing_value(value: Any) -> float | str:
    if value == "random":
        return value
    if _is_number(value) and math.isfinite(value):
        return float(value)
    raise ValueError(f"must be a finite number or 'random', found {shorten(repr(value))}")


def _read_class_weights(value: Any) -> str | dict[str, float]:
    if value == "balanced":
        return value
    if isinstance(value, dict) and value:
        if bad := [name for name, weight in value.items() if not (_is_number(weight) and 0 < weight < math.inf)]:
            raise ValueError(f"the weight of the class {bad[0]!r} is {value[bad[0]]!r}; write a finite number above 0")
        return {str(name): float(weight) for name, weight in value.items()}
    raise ValueError(f"must be balanced or weights, such as {{cat: 2, dog: 1}}, found {shorten(repr(value))}")


def _without_control_characters(text: str) -> str:
    if has_control(text):
        raise ValueError(f"must have no control character, found {shorten(repr(text))}")
    return text


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the first number must not be above the second, found {list(pair)}")
    return pair


def _not_a_number(value: Any) -> Any:
    if _is_number(value):  # 1 == True, so a Literal accepts 1
        raise ValueError(f"must be 'auto', true or false, found {value}")
    return value


NumClasses = Annotated[
    int,
    Field(ge=2, le=1_000_000),
    WrapValidator(lambda value, check: AUTO_CLASSES if value == "auto" else check(value)),
    PlainSerializer(lambda count: "auto" if count == AUTO_CLASSES else count),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 2, "maximum": 1_000_000}, {"const": "auto"}]}),
]
AnyDuration = Annotated[
    Duration,
    PlainValidator(_read_duration),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(ep|st)$"}),
]
PositiveDuration = Annotated[AnyDuration, AfterValidator(_positive)]

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
# A list is not a tuple in strict mode. The items stay strict.
Pair = Annotated[tuple[Positive, Positive], Field(strict=False), AfterValidator(_ordered)]
Share = Annotated[Positive, Field(le=1)]
Area = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
_Level = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[tuple[_Level, _Level, _Level], Field(strict=False)]
ChannelMean = Annotated[tuple[Annotated[Number, Field(ge=0, le=1)], ...], Field(min_length=1, strict=False)]
ChannelStd = Annotated[tuple[Annotated[Number, Field(gt=0, le=1)], ...], Field(min_length=1, strict=False)]
Stages = Annotated[tuple[Literal["layer0", "layer1", "layer2", "layer3", "layer4"], ...], Field(strict=False)]
Sinks = Annotated[tuple[SinkName, ...], Field(strict=False)]
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_without_control_characters)]
PathText = Annotated[Text, AfterValidator(lambda text: str(expand_home(text)) if text.startswith("~") else text)]
Patterns = Annotated[tuple[Text, ...], Field(strict=False)]
ClassWeights = Annotated[Literal["balanced"] | dict[str, Positive], BeforeValidator(_read_class_weights)]
AutoBool = Annotated[Literal["auto", True, False], BeforeValidator(_not_a_number)]

ONLY_FOR = [
    ("augment.policy.name", "randaugment", "augment.policy.num_ops augment.policy.magnitude"),
    ("data.format", "folder", "data.class_map data.exclude data.ignore data.split"),
    ("data.format", "shards", "data.shuffle_shards"),
    ("data.format", "synthetic", "data.synthetic_images"),
    ("data.on_error", "substitute", "data.max_bad_images"),
    ("loss.name", "bce", "loss.target_threshold"),
    ("optimizer.name", "adamw", "optimizer.betas optimizer.eps"),
    ("optimizer.name", "sgd", "optimizer.momentum optimizer.nesterov"),
    ("schedule.name", "cosine linear", "schedule.final_lr"),
    ("schedule.name", "step", "schedule.every schedule.factor"),
]
"""A key, some of its values, and the keys that have an effect for these values only."""


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, types are strict, values are frozen."""

    model_config = {"extra": "forbid", "frozen": True, "strict": True, "protected_namespaces": ()}


def _key(default: Any, meaning: str, **limits: Any) -> Any:
    """Return a field: the default, the description in the schema and in docs/recipe.md, and limits such as `ge`."""
    return Field(default=default, description=meaning, **limits)


class ModelSection(Section):
    """The network."""

    name: ModelName = Field(
        description="The network. `seresnext50` is short for `legacy_seresnext50_32x4d`, and so on for 26 and 101. "
        "`seresnext50_32x4d` and `seresnext101_32x4d` are timm's newer networks with padding in the stem's pooling."
    )
    num_classes: NumClasses = _key(1000, "Number of classes. auto: as many as the data has, if no head is loaded.")
    in_channels: int = _key(3, "Channels of an image. Image files are read as RGB: 3.", ge=1, le=1024)
    drop_rate: Number = _key(0.2, "Dropout before the classifier.", ge=0, lt=1)
    weights: PathText | None = _key(
        None, "File of weights to start from. `published`: the model's file, which is downloaded. null: random weights."
    )
    reset_head: bool = _key(False, "Load all of `model.weights` except the classifier, which starts random.")
    zero_init_last: bool = _key(False, "Initialise the weight of the last BatchNorm in every block to zero.")
    drop_path_rate: Number = _key(0.0, "Stochastic depth of the last block, linearly less before.", ge=0, lt=1)
    frozen: Stages = _key((), "Stages whose loaded weights and BatchNorm statistics do not change.")
    frozen_until: PositiveDuration | None = _key(None, "When the stages of `frozen` start to train. null: never.")

    @property
    def never_trained(self) -> Stages:
        """The stages that are frozen to the end of the run."""
        return self.frozen if self.frozen_until is None else ()


class ProgressiveSection(Section):
    """Smaller training images at the start. The size grows in steps of 32 pixels. Validation uses `image_size`."""

    min_size: int | None = _key(None, "Side of a training image at the start.", ge=16, le=4096)
    max_size: int | None = _key(None, "Side of a training image at the end. null: `data.image_size`.", ge=16, le=4096)
    start_ramp: AnyDuration = _key(Duration(0, "ep"), "When the size starts to grow.")
    end_ramp: PositiveDuration | None = _key(None, "When the size reaches `max_size`.")


class SplitSection(Section):
    """The division of photos without validation photos, by a hash of `runtime.seed` and the content of each file."""

    val: Number = _key(0.2, "Share of the validation photos. Photos that are added later move no others.", gt=0, lt=1)


class DataSection(Section):
    """The images."""

    root: PathText = _key(
        "data/imagenet",
        "Folder with a folder per split or, with `split`, per class; or a list (`.csv`, `.jsonl`) with path, label and "
        "optional split. For `shards` also an address, `s3://...`.",
    )
    format: DataFormat = _key(
        "folder",
        "`folder`: ROOT/SPLIT/CLASS/IMAGE. `imagenet`: the archives of the challenge as downloaded. "
        "`shards`: tar files of `seresnext prepare shards`. `synthetic`: generated images, for benchmarks.",
    )
    cache: PathText | None = _key(None, "Folder for indices and downloaded shards. null: in the user's cache folder.")
    shuffle_shards: int | None = _key(None, "`shards` only: shards shuffled at a time. null: all.", ge=1, le=65_536)
    train_split: Text = _key("train", "Folder of the training images under the root.")
    val_split: Text = _key("val", "Folder of the validation images under the root.")
    split: SplitSection | None = _key(None, "`folder` only: division of data without validation images. null: none.")
    ignore: Patterns = _key((), "`folder` only: patterns of files or paths to leave out, such as `*_copy*`.")
    class_map: PathText | None = _key(
        None,
        "`folder` only: CSV file of `old,new` names of classes. Equal names merge. No name: the class is left out.",
    )
    exclude: PathText | None = _key(
        None, "`folder` only: photos to leave out: a path a line, or CSV with the column `path` of `seresnext doctor`."
    )
    sampling: Literal["shuffle", "balanced"] = _key(
        "shuffle", "`shuffle`: each image at most once in an epoch. `balanced`: equally many of each class."
    )
    image_size: int = _key(224, "Side of the square input of the network, in pixels.", ge=16, le=4096)
    progressive: ProgressiveSection | None = _key(None, "Smaller training images at the start. null: `image_size`.")
    workers: int = _key(8, "Loader processes per rank. 0: load in the training process.", ge=0, le=256)
    on_error: Literal["raise", "substitute"] = _key(
        "raise",
        "`raise`: a bad training image stops the run. `substitute`: warn, and use another image of the same class.",
    )
    max_bad_images: int = _key(100, "`substitute` only: bad images of all ranks. More stop the run.", ge=0, le=10**9)
    mean: ChannelMean = _key((0.485, 0.456, 0.406), "Mean of each channel, for pixels scaled to 0..1.")
    std: ChannelStd = _key((0.229, 0.224, 0.225), "Standard deviation of each channel, for pixels scaled to 0..1.")
    # The limit is 1.5 GB decoded. The largest phone cameras have 200 million pixels.
    max_pixels: int = _key(50_000_000, "Largest image, in pixels. A larger image is an error.", ge=1, le=500_000_000)
    exif_rotation: bool = _key(False, "Turn images as their EXIF orientation asks. The published weights: false.")
    background: Color | None = _key(None, "Colour behind transparent pixels, [r, g, b]. null: the stored colour.")
    synthetic_images: int | None = _key(None, "`synthetic` only: how many images to generate.", ge=1, le=10**7)


class PolicySection(Section):
    """Random operations on a training image, such as shear and posterize."""

    name: Literal["randaugment", "trivialaugment"] = _key("randaugment", "Operations and magnitudes are torchvision's.")
    num_ops: int | None = _key(None, "`randaugment` only: operations per image.", ge=1, le=14)
    magnitude: int | None = _key(None, "`randaugment` only: strength, from 0 to num_magnitude_bins - 1.", ge=0)
    num_magnitude_bins: int = _key(31, "Number of magnitudes.", ge=2, le=10_000)


class ColorJitterSection(Section):
    """Random changes of colour: factors drawn uniformly around 1, applied in random order."""

    brightness: Number = _key(0.0, "x: factor from 1 - x to 1 + x. 0: off.", ge=0)
    contrast: Number = _key(0.0, "x: factor from 1 - x to 1 + x. 0: off.", ge=0)
    saturation: Number = _key(0.0, "x: factor from 1 - x to 1 + x. 0: off.", ge=0)
    hue: Number = _key(0.0, "x: rotation of -x to x full turns. 0: off.", ge=0, le=0.5)


class ErasingSection(Section):
    """Random erasing: a rectangle of a normalised training image is overwritten."""

    probability: Number = _key(0.25, "Probability to erase in an image.", gt=0, le=1)
    scale: Area = _key((0.02, 0.33), "Area of the rectangle / area of the image: [low, high].")
    ratio: Pair = _key((0.3, 3.3), "Height / width of the rectangle: [low, high].")
    value: Annotated[
        float | str,
        PlainValidator(_read_erasing_value),
        WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "random"}]}),
    ] = _key(0.0, "Fill, in normalised pixels. 0: the mean colour. `random`: normal noise.")


class AugmentSection(Section):
    """Augmentation of training images."""

    crop_scale: Area = _key((0.08, 1.0), "Area of the random crop / area of the image: [low, high].")
    crop_ratio: Pair = _key((0.75, 4 / 3), "Width / height of the random crop: [low, high].")
    flip: Number = _key(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    interpolation: Interpolation = _key("bilinear", "Interpolation for resizing a crop and for `policy`.")
    policy: PolicySection | None = _key(None, "RandAugment or TrivialAugment. null: off.")
    color_jitter: ColorJitterSection | None = _key(None, "Random changes of colour, after the policy. null: off.")
    erasing: ErasingSection | None = _key(None, "Random erasing. null: off.")
    repeats: int = _key(1, "Copies of an image in a batch (repeated augmentation).", ge=1, le=10**7)


class MixSection(Section):
    """Mixup and CutMix within a micro-batch."""

    mixup: Number = _key(0.0, "Alpha of mixup. 0: off.", ge=0)
    cutmix: Number = _key(0.0, "Alpha of CutMix. 0: off.", ge=0)
    off_after: PositiveDuration | None = _key(None, "When mixing ends. null: never.")


class BatchSection(Section):
    """Batch sizes. Accumulation is global_size / (micro_size x ranks)."""

    global_size: int = _key(1024, "Images of one optimizer step, over all ranks.", ge=1, le=MAX_GLOBAL_SIZE)
    micro_size: int = _key(128, "Images of one forward pass on one rank. BatchNorm statistics are over these.", ge=1)


class OptimizerSection(Section):
    """Optimizer."""

    name: OptimizerName = _key("sgd", "`sgd`: SGD with momentum. `adamw`: AdamW. Both are torch's.")
    lr: Number = _key(0.6, "Peak learning rate for this global_size. The run never rescales the rate.", gt=0)
    head_lr: Number | None = _key(None, "Peak learning rate of the classifier. null: `lr`.", gt=0)
    layer_decay: Number = _key(1.0, "Factor of the rate from each stage to the stage before. 1: off.", gt=0, le=1)
    momentum: Number = _key(0.9, "`sgd` only: momentum.", ge=0, lt=1)
    nesterov: bool = _key(False, "`sgd` only: Nesterov momentum.")
    betas: Betas = _key((0.9, 0.999), "`adamw` only: decay of the averages of gradients and squared gradients.")
    eps: Number = _key(1e-8, "`adamw` only: added to the denominator of the update.", gt=0)
    weight_decay: Number = _key(1e-4, "`sgd`: L2 penalty, added to the gradient. `adamw`: decoupled, times lr.", ge=0)
    decay_norm_and_bias: bool = _key(True, "Apply weight decay to BatchNorm weights and biases.")
    clip_norm: Number | None = _key(None, "Total norm above which gradients are scaled down. null: off.", gt=0)
    stop_after_skips: int = _key(10, "Skipped steps (loss or gradient not finite) in a row that end the run.", ge=1)


class ScheduleSection(Section):
    """Learning rate schedule."""

    name: ScheduleName = _key("step", "Shape of the decay: `step` by step, `cosine` (half a period) or `linear`.")
    every: PositiveDuration | None = _key(None, "`step` only: interval of decays. 30ep without a schedule section.")
    factor: Number | None = _key(None, "`step` only: factor of a decay. 0.1 without a schedule section.", gt=0, lt=1)
    warmup: AnyDuration = _key(Duration(0, "ep"), "Linear warmup at the start. 0ep: none.")
    final_lr: Number = _key(0.0, "`cosine` and `linear`: learning rate at the end.", ge=0)


class LossSection(Section):
    """Training loss."""

    name: LossName = _key("cross_entropy", "`cross_entropy`: softmax over all classes. `bce`: binary, each class.")
    label_smoothing: Number = _key(0.1, "Share of the target that is spread evenly over all classes.", ge=0, lt=1)
    class_weights: ClassWeights | None = _key(
        None, "Weights of the classes, by name, or `balanced`: rare classes weigh more. null: all weigh the same."
    )
    target_threshold: Number | None = _key(None, "`bce` only: targets above become 1, others 0. null: off.", ge=0, lt=1)


class EmaSection(Section):
    """Exponential moving average (EMA) of the weights."""

    decay: Number = _key(0.9999, "Decay per optimizer step.", gt=0, lt=1)
    warmup: bool = _key(True, "Use a smaller decay in the first steps.")


class RecalibrateSection(Section):
    """BatchNorm statistics of the final weights, computed over training images after the last step."""

    images: int = _key(50_000, "Images (augmented, not mixed), rounded up to global batches.", ge=1, le=10**9)


class EvaluationSection(Section):
    """Validation."""

    every: PositiveDuration = _key(Duration(1, "ep"), "Interval between validations.")
    batch_size: int | None = _key(None, "Images of a forward pass on a rank. null: `batch.micro_size`.", ge=1, le=10**6)
    crop_pct: Number = _key(0.875, "Side of the centre crop / shorter side of the resized image.", ge=0.1, le=1)
    interpolation: Interpolation = _key("bilinear", "Interpolation for resizing an image.")
    weights: Literal["auto", "model", "ema"] = _key("auto", "Weights that choose `best`. auto: EMA, else the model.")
    best_by: Literal["top1", "balanced_accuracy", "macro_f1", "loss"] = _key(
        "top1", "Measure that chooses `best`. `balanced_accuracy` (mean recall) and `macro_f1` are means over classes."
    )
    recalibrate: RecalibrateSection | None = _key(None, "Recompute BatchNorm before the last validation. null: off.")


class EarlyStopSection(Section):
    """Early stopping."""

    patience: PositiveDuration = _key(Duration(10, "ep"), "Training ends if the best validation is this old.")


class CheckpointSection(Section):
    """Checkpoints."""

    every: PositiveDuration = _key(Duration(1, "ep"), "Interval between checkpoints; also before each validation.")
    keep: int = _key(3, "How many of the newest checkpoints stay. `last` and `best` always stay.", ge=1, le=10**9)
    keep_every: PositiveDuration | None = _key(None, "Interval between checkpoints that always stay. null: none.")
    on_failure: Literal["stop", "continue"] = _key("stop", "Action after a failed save.")
    mirror: PathText | None = _key(
        None, "`s3://...`, `gs://...` or a folder that gets copies of the checkpoints (extra `remote`). null: none."
    )


class LoggingSection(Section):
    """Logging."""

    every: PositiveDuration = _key(Duration(50, "st"), "Interval between lines of metrics.")
    sinks: Sinks = _key(
        ("tensorboard",), "Services for metrics, next to `metrics.jsonl`. `wandb` and `mlflow` need the extra `track`."
    )


class RuntimeSection(Section):
    """Use of the machine. `auto` is resolved at a fresh start, and the resolved value is stored."""

    seed: int = _key(0, "Seed of all randomness.", ge=0, lt=2**63)
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = _key(
        "auto", "auto: bf16 on CUDA 8.0 and newer, fp16 on older GPUs, fp32 on CPU."
    )
    compile: AutoBool = _key("auto", "torch.compile. auto: true on CUDA.")
    grad_checkpointing: bool = _key(False, "Recompute blocks in backward passes: less memory, about a third more time.")
    channels_last: AutoBool = _key(True, "NHWC memory layout. auto: true.")
    compress_gradients: Literal["none", "bf16"] = _key("none", "bf16: DDP sends gradients as bf16, half the bytes.")
    deterministic: bool = _key(False, "Use deterministic kernels only: a repeated run on CUDA gives the same bits.")
    loader_timeout: int = _key(600, "Seconds without a batch after which the run ends with an error.", ge=1, le=10**7)
    collective_timeout: int = _key(600, "Seconds without an answer after which a rank counts as lost.", ge=1)


class Recipe(Section):
    """A recipe: everything that defines a run."""

    model: ModelSection
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    mix: MixSection = MixSection()
    batch: BatchSection = BatchSection()
    length: PositiveDuration = _key(Duration(100, "ep"), "Length of the training.")
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection(name="step", every=Duration(30, "ep"), factor=0.1)
    loss: LossSection = LossSection()
    ema: EmaSection | None = _key(None, "Moving average of the weights. null: off.")
    evaluation: EvaluationSection = EvaluationSection()
    early_stop: EarlyStopSection | None = _key(None, "End before `length` if validation stops improving. null: off.")
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    runtime: RuntimeSection = RuntimeSection()

    def changed(self, **sections: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other values, unchecked: `changed(model={"num_classes": 3}, data={"workers": 0})`."""
        update = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=update)
