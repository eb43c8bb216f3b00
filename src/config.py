"""The settings of a run: schema, loading, writing.

One YAML file is one experiment; `_base_` names the files that it builds on, `key=value` texts come last. Everything
that can be judged without opening data or building a network is judged here, before anything slow starts. The keys
inside `model.backbone`, `model.head`, `loss` and `data.options` are constructor arguments and checked by the
constructors.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from src.config_errors import explain, refuse, require_name
from src.config_loading import ConfigError, find, join_problems, merge, plain, read_overrides, read_tree
from src.config_writing import dotted, leaves, to_yaml

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]
Size = tuple[PositiveInt, PositiveInt]  # (height, width) in pixels
Edges = tuple[PositiveInt, PositiveInt]  # (long, short) edge limits in pixels
Named = Annotated[dict[str, Any], AfterValidator(require_name)]


class Settings(BaseModel):
    """Frozen and strict: no unknown key, no conversion, except int to float and list to tuple."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _tuple_from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # YAML has no tuples


class DeviceConfig(Settings):
    """Where the run computes. Graph mode is the tested one; PyNative gives stack traces while developing."""

    target: Literal["CPU", "GPU", "Ascend"] = "CPU"
    mode: Literal["graph", "pynative"] = "graph"
    compile_cache: Text | None = None  # folder that keeps compiled training steps, for a start in seconds


class DataConfig(Settings):
    """Data set and training augmentation (spec section 8.2)."""

    dataset: Text
    root: str | None = None
    train_split: Text = "train"
    val_split: Text = "val"
    unseen: tuple[Text, ...] = ()  # classes left out: their pixels are ignored, the others are numbered anew
    crop_size: Size
    base_size: Edges | None = None  # what ratio 1.0 means; None: the image's own size
    scale_range: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)  # lowest and highest ratio
    max_class_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75  # of a crop's pixels that one class may have
    flip: Fraction = 0.5  # probability
    photometric: bool = True
    reduced_decoding: bool = False  # JPEG files 2, 4 or 8 times smaller where they are shrunk by that much anyway
    max_classes: PositiveInt | None = None  # room for the classes of one crop; None: all of the data set
    workers: PositiveInt = 2
    on_bad_sample: Literal["error", "skip"] = "error"  # training only: an image or mask that cannot be read
    max_bad_samples: PositiveInt = 100  # skip only: more different ones end the run
    check_samples: NonNegativeInt = 64  # of each split, looked at before training (tools/doctor.py); 0: none
    options: dict[str, Any] = {}  # keyword arguments of the data set's function
    scribbles: Text | None = None  # folder of label files, by tools/make_scribbles.py, that training takes instead

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        problems = _edge_problems("data.base_size", self.base_size)
        low, high = self.scale_range
        if low > high:
            text = f"data.scale_range [{low}, {high}] is reversed; write [{high}, {low}], lowest ratio first"
            problems.append((text, ("data.scale_range",)))
        if self.scribbles and self.train_split == self.val_split:
            text = f"data.scribbles with {self.train_split!r} for training and evaluation: it needs full labels"
            problems.append((text, ("data.scribbles", "data.train_split", "data.val_split")))
        refuse(*problems)
        return self


class TextConfig(Settings):
    """Class names as vectors, for the heads whose classes are told by text: pixel_text and text_ecenet."""

    table: Text  # .npz of tools/encode_text.py or a public .npy: a path, or a file in $ECENET_DATA/clip_text_embeddings
    names: dict[str, Text] = {}  # class of the data set: name in the table, where spellings and synonyms do not tell
    rescale_norm: PositiveFloat | None = None  # length of every vector; null: as it is in the table
    merges: Text | None = None  # CLIP's merge file, where `table` is its converted text encoder (.safetensors) instead
    template: Text = "{}"  # prompt for that encoder, `{}` where the name goes: that of the table of the training


class ModelConfig(Settings):
    """Network. `mean` and `std` are for RGB values 0 to 255."""

    backbone: Named
    head: Named
    pretrained: str | None = None  # weights to start from: the backbone of a .safetensors or .ckpt file or a run
    # Take the head from `pretrained`, too, but for what depends on the classes, which starts fresh.
    reset_classifier: bool = False
    text: TextConfig | None = None
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.reset_classifier and not self.pretrained:
            text = "model.reset_classifier needs model.pretrained, weights of a whole network"
            refuse((text, ("model.reset_classifier", "model.pretrained")))
        return self


class OptimizerConfig(Settings):
    """Optimiser and learning rates: linear warm-up, then a polynomial from `lr` to `min_lr` (spec section 8.2)."""

    name: Literal["adamw", "sgd"]
    lr: PositiveFloat
    reference_batch: PositiveInt | None = None  # images a step that lr and min_lr are meant for; null: any
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # adamw only
    epsilon: PositiveFloat = 1e-8  # adamw only
    momentum: Decay = 0.9  # sgd only
    warmup_steps: NonNegativeInt = 0
    warmup_ratio: Fraction = 1e-6  # of lr, at step 0
    power: NonNegativeFloat = 1.0
    min_lr: NonNegativeFloat = 0.0
    head_lr_multiplier: PositiveFloat = 1.0
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # of the learning rate, per backbone layer
    clip_norm: NonNegativeFloat = 0.0  # L2 norm of all gradients; 0 = off

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        if self.min_lr > self.lr:
            text = f"optimizer.min_lr ({self.min_lr}) must not be larger than optimizer.lr ({self.lr})"
            refuse((text, ("optimizer.min_lr", "optimizer.lr")))
        return self


class TrainConfig(Settings):
    """Length of the run and what happens how often, all in optimiser steps."""

    steps: PositiveInt
    batch_size: PositiveInt  # samples per device and micro-batch
    accumulate: PositiveInt = 1  # micro-batches per step
    amp_level: Literal["O0", "O2", "auto"] = "O0"  # products in 16 bit: none, all, or except on CPU
    ema_decay: Decay | None = None  # keep an average of the weights and evaluate it; 0.9999 for long runs
    log_every: PositiveInt = 50
    evaluate_every: PositiveInt = 4000
    checkpoint_every: PositiveInt = 4000
    keep_checkpoints: PositiveInt = 2  # newest ones, besides the best: should the last be damaged, there is another
    max_bad_steps: PositiveInt = 10  # steps in a row with a loss or gradient that is not finite, before the run ends


class EvalConfig(Settings):
    """How whole images go through the network: resized to `size`, padded to it, or in windows of it."""

    mode: Literal["resize", "whole", "slide"] = "whole"
    size: Size
    stride: Size | None = None  # slide only, needed there
    base_size: Edges | None = None
    scales: tuple[PositiveFloat, ...] = (1.0,)
    flip: bool = False
    boundary_radius: PositiveInt = 3  # pixels, for the boundary F-score

    @model_validator(mode="after")
    def _check(self) -> "EvalConfig":
        problems = _edge_problems("eval.base_size", self.base_size)
        if not self.scales:
            problems.append(("eval.scales is empty; give at least one ratio, such as [1.0]", ("eval.scales",)))
        elif self.mode == "resize" and self.scales != (1.0,):
            text = f"eval.scales {list(self.scales)} needs eval.mode slide or whole; with resize only [1.0] is possible"
            problems.append((text, ("eval.scales", "eval.mode")))
        if self.mode == "slide" and self.stride is None:
            problems.append(("eval.mode slide needs eval.stride [height, width]", ("eval.mode", "eval.stride")))
        elif self.mode == "slide" and (self.stride[0] > self.size[0] or self.stride[1] > self.size[1]):
            text = (
                f"eval.stride {list(self.stride)} must not be larger than eval.size {list(self.size)}, or gaps remain"
            )
            problems.append((text, ("eval.stride", "eval.size")))
        refuse(*problems)
        return self


class Config(Settings):
    """All settings of one run; `name` names its folder in `output_dir` and is the file's stem unless given."""

    name: Text
    seed: NonNegativeInt = 0
    output_dir: Text = "output"
    device: DeviceConfig = DeviceConfig()
    data: DataConfig
    model: ModelConfig
    loss: Named
    optimizer: OptimizerConfig
    train: TrainConfig
    eval: EvalConfig

    @model_validator(mode="after")
    def _check(self) -> "Config":
        warmup, steps = self.optimizer.warmup_steps, self.train.steps
        if warmup >= steps:
            text = f"optimizer.warmup_steps ({warmup}) must be smaller than train.steps ({steps})"
            refuse((text, ("optimizer.warmup_steps", "train.steps")))
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file and `key=value` texts; ConfigError lists everything that is wrong with them."""
    return load_config_with_sources(path, overrides)[0]


def load_config_with_sources(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """As `load_config`, with the place that each value came from.

    Returns the config and, for every dotted key of a value, `file:line`, `command line` or `default`.
    """
    path = Path(path)
    tree = merge(read_tree(path), read_overrides(overrides))
    values = {"name": path.stem, **plain(tree)}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(join_problems(explain(error, tree, Config, str(path)), f"config {path}")) from None
    nodes = {keys: find(tree, keys) for keys in leaves(config.model_dump())}
    return config, {dotted(keys): node.source if node else "default" for keys, node in nodes.items()}


def config_to_yaml(config: Config) -> str:
    """The complete config, defaults included, as YAML that loads on its own to an equal Config."""
    return to_yaml(config.model_dump(), {})


def format_config(config: Config, sources: Mapping[str, str]) -> str:
    """The complete config as YAML, each value followed by a comment that says where it came from."""
    return to_yaml(config.model_dump(), sources)


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`; the ValueError for an unknown name lists the known ones and offers the nearest."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}{hint}")


def _edge_problems(key: str, edges: Edges | None) -> list[tuple[str, tuple[str, ...]]]:
    if edges is None or edges[0] >= edges[1]:
        return []
    return [(f"{key} {list(edges)} is reversed; write [{edges[1]}, {edges[0]}], long edge first", (key,))]
