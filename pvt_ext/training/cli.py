"""The commands ``pvt train`` and ``pvt eval``, as :mod:`pvt_ext.cli` calls them."""

import json
from pathlib import Path

from pvt_ext.training.config import read_config
from pvt_ext.training.data import EvalImages, eval_loader
from pvt_ext.training.evaluate import evaluate
from pvt_ext.training.learner import autocast
from pvt_ext.training.loop import LAST, train
from pvt_ext.training.models import open_candidate, open_labelled
from pvt_ext.training.processes import start_processes


def run_train(path: Path, changes: list[str], resume: str | None) -> None:
    """Read the experiment and train it; ``resume``: ``"auto"``, a file, or None."""
    config = read_config(path, changes)
    last = config.run.output / LAST
    if resume is None and last.exists():
        raise ValueError(f"{last} exists: go on with --resume auto, or choose another run.output")
    start = Path(resume) if resume else None
    if resume == "auto":
        start = last if last.exists() else None
    with start_processes(config.run.device) as processes:
        train(config, processes, resume=start)


def run_eval(model: str, data: str, batch: int, workers: int, device: str, format: str) -> None:
    """Evaluate a model on labelled images and print its accuracy."""
    candidate = open_candidate(model)
    source = open_labelled(data, candidate)
    with start_processes(device) as processes:
        images = EvalImages(source, candidate.preprocess, processes.rank, processes.world_size)
        loader = eval_loader(images, batch, workers, pin_memory=processes.device.type == "cuda")
        network = candidate.model.to(processes.device)
        found = evaluate(network, loader, processes, autocast(processes.device, "fp32"))
        if not processes.is_main:
            return
        if format == "json":
            print(json.dumps({"model": model, "data": data, **found.as_dict()}))
        else:
            print(
                f"{found.images} images: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, "
                f"loss {found.loss:.4f}"
            )
