"""What a training run is asked to do: dataclasses, read from one YAML file.

The defaults are the published ImageNet-1k recipe of PVT v1 and v2 (tiny, small, b0..b2), for eight
processes of 128 images; medium, large and b3..b5 use ``model.drop_path`` 0.3 and
``optimizer.clip_grad`` 1.

Source: ``classification/main.py`` and ``configs/`` of the authors' code.
"""

import dataclasses
import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pvt_ext.preprocess import PRESETS
from pvt_ext.training.rand_augment import parse_policy
from pvt_ext.variants import VARIANTS

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _one_of(names: Sequence[str], value: str) -> str:
    if value not in names:
        close = difflib.get_close_matches(value, names, cutoff=0.65)
        raise ValueError(f"one of {', '.join(close or names)}")
    return value


def _policy(value: str) -> str:
    parse_policy(value)
    return value


@dataclass(frozen=True, config=_STRICT)
class Model:
    """The network. ``weights``: a file or a published name to start from (fine-tuning)."""

    name: Annotated[str, pydantic.AfterValidator(lambda v: _one_of(list(VARIANTS), v))]
    img_size: Count = 224
    drop_path: BelowOne = 0.1
    weights: str | None = None
    grad_checkpointing: bool = False
    fused: bool = True


@dataclass(frozen=True, config=_STRICT)
class Data:
    """Images: folders of class folders, or tar shards (``shards-{000..146}.tar``).

    Attributes:
        train, val: a folder, or a pattern of shards; without ``val`` nothing is evaluated.
        classes: file of class names, one a line, for shards (which hold numbers only).
        workers: processes that decode and augment, per training process.
        cache: keep all training images decoded in memory, shared by the workers.
        preset: how an evaluation, and an exported file, views an image.
    """

    train: str
    val: str | None = None
    classes: Path | None = None
    workers: Whole = 8
    cache: bool = False
    preset: Annotated[str, pydantic.AfterValidator(lambda v: _one_of(list(PRESETS), v))] = "paper"


@dataclass(frozen=True, config=_STRICT)
class Augment:
    """What is done to each image; nothing of it in an evaluation.

    Attributes:
        crop: ``"resized"``, a random part of the image (``scale`` of its area, ``ratio`` of width
            to height) resized to ``img_size``; ``"padded"``, for images of ``img_size`` already:
            ``padding`` pixels added on each side, and a random window of them.
        flip: probability of a horizontal flip.
        rand_augment: policy as timm writes it; None for none.
        erasing: probability that a random rectangle becomes noise.
        repeats: times that an image is drawn in an epoch, each time augmented differently; an epoch
            has as many images as without. 1: each image once.
    """

    crop: Literal["resized", "padded"] = "resized"
    scale: tuple[Probability, Probability] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    padding: Whole = 4
    flip: Probability = 0.5
    rand_augment: Annotated[str, pydantic.AfterValidator(_policy)] | None = "rand-m9-mstd0.5-inc1"
    erasing: Probability = 0.25
    repeats: Count = 3


@dataclass(frozen=True, config=_STRICT)
class Mix:
    """Mixup and cutmix of a batch with itself in reverse, and smoothing of the labels.

    Attributes:
        mixup, cutmix: parameter of the Beta distribution of the share; 0 switches it off.
        prob: probability that a batch is mixed.
        switch_prob: probability of cutmix where both are on.
        smoothing: share of each label that is spread over all classes.
    """

    mixup: Amount = 0.8
    cutmix: Amount = 1.0
    prob: Probability = 1.0
    switch_prob: Probability = 0.5
    smoothing: BelowOne = 0.1


@dataclass(frozen=True, config=_STRICT)
class Optimizer:
    """AdamW.

    Attributes:
        lr: learning rate for ``lr_images`` images a step; scaled to the images of a step.
        lr_images: None: ``lr`` is taken as it is.
        clip_grad: largest norm of the gradient; None: it is not clipped.
    """

    lr: Positive = 5e-4
    lr_images: Count | None = 512
    weight_decay: Amount = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip_grad: Positive | None = None


@dataclass(frozen=True, config=_STRICT)
class Schedule:
    """Warm-up, then half a cosine. ``per``: when the rate changes, as published each epoch."""

    epochs: Count = 300
    warmup_epochs: Whole = 5
    warmup_lr: Amount = 1e-6
    min_lr: Amount = 1e-5
    per: Literal["epoch", "step"] = "epoch"


@dataclass(frozen=True, config=_STRICT)
class Run:
    """How and where it runs.

    Attributes:
        output: folder of checkpoints, weights, log and curves.
        batch_size: images of one process at a time.
        accumulate: batches whose gradients make one step.
        precision: of the arithmetic, by autocast; weights stay float32.
        ema: decay of the moving average of the weights, which is then evaluated and saved as well.
        device: ``"auto"`` is a GPU if there is one.
        log_steps, checkpoint_steps: every so many steps; every epoch besides.
        eval_epochs: every so many epochs, and after the last one.
    """

    output: Path
    batch_size: Count = 128
    accumulate: Count = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    compile: bool = False
    ema: BelowOne | None = None
    seed: Whole = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_steps: Count = 50
    checkpoint_steps: Count = 1000
    eval_epochs: Count = 1
    tensorboard: bool = False


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One experiment: one YAML file."""

    model: Model
    data: Data
    run: Run
    augment: Augment = Augment()
    mix: Mix = Mix()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        return TypeAdapter(Config).dump_python(self, mode="json")


def read_config(path: Path, changes: Sequence[str] = ()) -> Config:
    """The experiment in a YAML file.

    Args:
        path: the file.
        changes: ``key=value`` each, e.g. ``run.batch_size=64``; the value is read as YAML.

    Raises:
        ValueError: the file or a change is not what a :class:`Config` holds; the message names the
            key, what was expected and what came.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected sections such as model, data and run, got {values!r}")
    for change in changes:
        _apply(values, change)
    return make_config(values, str(path))


def make_config(values: Mapping[str, Any], origin: str = "config") -> Config:
    """A :class:`Config` of nested values; ``origin`` begins the message of an error."""
    try:
        return TypeAdapter(Config).validate_python(values)
    except pydantic.ValidationError as error:
        problems = [_problem(entry) for entry in error.errors()]
        raise ValueError(f"{origin}: {'; '.join(problems)}") from None


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *sections, name = key.split(".")
    if not equals or not sections:
        raise ValueError(f"{change!r}: expected a change such as run.batch_size=64")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{change!r}: {section} is no section")
        values = inner
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{change!r}: not YAML ({' '.join(str(error).split())})") from error


_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _problem(error: Any) -> str:
    """One line on one error of pydantic: key, what was expected, what came."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(path[-1], _keys(path[:-1]), n=1)
        advice = (
            f"; did you mean {close[0]}?" if close else f"; there are {', '.join(_keys(path[:-1]))}"
        )
        return f"{key}: no such key{advice}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    bounds = [(word, error.get("ctx", {}).get(name)) for name, word in _BOUNDS.items()]
    limits = [f"{word} {limit:g}" for word, limit in bounds if limit is not None]
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = limits[0] if limits else message
    return f"{key}: expected {message}, got {error['input']!r:.80}"


def _keys(path: Sequence[str]) -> list[str]:
    """The keys of the section at ``path``."""
    section: Any = Config
    for name in path:
        section = next((f.type for f in dataclasses.fields(section) if f.name == name), Config)
    return [field.name for field in dataclasses.fields(section)]


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose sections have no key twice (PyYAML would take the last in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)
