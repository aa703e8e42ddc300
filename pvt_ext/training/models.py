"""The model that a run begins with, and the models that an evaluation accepts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from pvt_ext.checkpoint import recorded
from pvt_ext.export import load_torchscript
from pvt_ext.model import PVT, create_model
from pvt_ext.preprocess import Preprocess
from pvt_ext.published import PACKAGED
from pvt_ext.training.config import Config, make_config
from pvt_ext.training.sources import Source, open_source
from pvt_ext.training.state import load_state
from pvt_ext.variants import VARIANTS
from pvt_ext.weights import load_official, load_published, load_weights


class Candidate(NamedTuple):
    """A model to be evaluated, with the way it views images and the names of its classes."""

    model: nn.Module
    preprocess: Preprocess
    classes: Sequence[str] | None


def make_model(config: Config, num_classes: int, with_weights: bool = True) -> PVT:
    """The model of a run, in training mode, with the weights that ``model.weights`` names."""
    options = config.model
    model = create_model(
        options.name,
        num_classes=num_classes,
        img_size=options.img_size,
        drop_path_rate=options.drop_path,
        fused=options.fused,
    )
    if options.weights is not None and with_weights:
        adapt = ("positions", "num_classes")
        if Path(options.weights).is_file():
            load_weights(model, options.weights, adapt=adapt)
        elif options.weights == "official":
            load_official(model)
        else:
            load_published(model, options.weights, adapt=adapt)
    return model


def open_candidate(name: str) -> Candidate:
    """What ``pvt eval`` is given.

    Args:
        name: an exported model (``.pt``), weights of a run (``.safetensors``), a checkpoint of a
            run (``.pth``; its moving average if it has one), or the name of a published model.
    """
    path = Path(name)
    if path.suffix == ".pt":
        module, facts = load_torchscript(path)
        view = facts["preprocess"]
        return Candidate(module, Preprocess(view["preset"], tuple(view["crop"])), facts["labels"])
    if path.suffix == ".safetensors":
        return _from_weights(path)
    if path.suffix == ".pth":
        return _from_checkpoint(path)
    if name not in VARIANTS:
        raise ValueError(
            f"{name}: expected a .pt, .safetensors or .pth file, or a name in pvt list"
        )
    if name in PACKAGED:
        return _from_weights(PACKAGED[name])
    model = create_model(name, pretrained=True)
    return Candidate(model, Preprocess("paper", model.img_size), None)


def open_labelled(path: str, candidate: Candidate) -> Source:
    """Images whose class numbers are those of ``candidate``.

    Folders are matched by their names if the model knows these, else, if there are as many, by
    their order (ImageNet's folders are not named as its classes are).
    """
    source = open_source(path)
    known = candidate.classes
    if known is None or not Path(path).is_dir() or set(source.classes).isdisjoint(known):
        if known is not None and len(source.classes) > len(known):
            raise ValueError(
                f"{path}: expected the {len(known)} classes of the model, got {len(source.classes)}"
            )
        return source
    return open_source(path, known)


def _from_weights(path: Path) -> Candidate:
    variant, size, preset, labels = recorded(path)
    if variant is None or size is None or preset is None or labels is None:
        raise ValueError(
            f"{path}: expected weights that pvt train wrote; for others, export them and evaluate "
            "the exported model"
        )
    model = create_model(variant, num_classes=len(labels), img_size=size)
    load_weights(model, path)
    return Candidate(model, Preprocess(preset, size), labels)


def _from_checkpoint(path: Path) -> Candidate:
    state, _ = load_state(path)
    config, classes = make_config(state["config"], str(path)), state["classes"]
    model = make_model(config, len(classes), with_weights=False)
    weights = state["model"]
    if state["ema"] is not None:
        prefix = "module."
        averaged = state["ema"].items()
        weights = {n.removeprefix(prefix): t for n, t in averaged if n.startswith(prefix)}
    load_weights(model, weights)
    return Candidate(model, Preprocess(config.data.preset, config.model.img_size), classes)
