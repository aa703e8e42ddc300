"""What precision costs: ours beside the other runtimes, on labelled images with trained weights.

    python -m benchmarks.accuracy FOLDER [pvt_nano] [--dtype fp32 bf16 int8] [--peers ours ...]
        [--calibrate FOLDER] [--images N] [--json FILE]

FOLDER has a folder of images for each class. All have the same weights and images; each peer's
scores are compared with float64's. benchmarks/README.md explains the columns.
"""

import argparse
import json
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare import begin, exact_logits, progress
from benchmarks.job import DTYPES, Job
from benchmarks.peers import PEERS
from benchmarks.report import Array, accuracy
from benchmarks.turns import workers
from pvt_ext import PVT
from pvt_ext.training.data import EvalImages
from pvt_ext.training.models import open_candidate, open_labelled
from pvt_ext.training.sources import Source

CALIBRATION = 300  # images for int8, as many as NNCF takes by default


@dataclass(frozen=True)
class Truth:
    """What every image is, and what float64 makes of it."""

    labels: Array  # [N]
    logits: Array  # [N, classes]


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.calibrate is None and "int8" in args.dtype:
        parser.error("--calibrate: expected a folder of other images, which int8 needs")
    machine = begin(args.threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="pvt-accuracy-") as name:
        job, labels = save_job(args, Path(name))
        truth = Truth(labels, exact_logits(job, at_once=100))
        for dtype in args.dtype:
            rows.append(measure(replace(job, dtype=dtype), args.peers, truth))
            print(f"\n{table(rows[-1])}", flush=True)
            if args.json:
                data = {"machine": machine, "rows": rows}
                args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def save_job(args: argparse.Namespace, folder: Path) -> tuple[Job, Array]:
    """The weights and images of the comparison, and the class numbers of the test images."""
    candidate = open_candidate(args.model)
    model = candidate.model
    if not isinstance(model, PVT):
        raise ValueError(f"{args.model}: expected weights, got an exported model")
    torch.save(model.state_dict(), folder / f"{model.variant}.weights.pt")

    def load(source: Source, count: int) -> tuple[Tensor, list[int]]:
        images = EvalImages(source, candidate.preprocess, 0, 1)
        chosen = random.Random(0).sample(range(len(images)), min(count, len(images)))
        pairs = [images[i] for i in sorted(chosen)]
        return torch.stack([image for image, _ in pairs]), [label for _, label in pairs]

    test, labels = load(open_labelled(str(args.folder), candidate), args.images)
    calibration = test[:0]
    if args.calibrate is not None:
        calibration, _ = load(open_labelled(str(args.calibrate), candidate), CALIBRATION)
    torch.save({"test": test, "calibration": calibration}, folder / "images.pt")
    H, W = test.shape[2:]
    return Job(model.variant, "fp32", 8, (H, W), args.threads, folder), np.array(labels)


def measure(job: Job, peers: list[str], truth: Truth) -> dict[str, Any]:
    """One row: what every peer answers."""
    results: dict[str, Any] = {}
    for peer in peers:  # one after the other, since nothing is timed
        with workers([peer], job, progress) as (worker,):
            progress(f"{job.label}: {peer} on {len(truth.labels)} images")
            logits = worker.ask("logits") if worker.ok else None
            results[peer] = {k: worker.state.get(k) for k in ("status", "reason", "config")}
            if logits is not None:
                results[peer] |= accuracy(logits, truth.logits)
                results[peer]["top1"] = top1(logits, truth.labels)
    progress("")
    return {
        "model": job.model,
        "dtype": job.dtype,
        "size": list(job.size),
        "images": len(truth.labels),
        "top1": top1(truth.logits, truth.labels),
        "peers": results,
    }


def top1(logits: Array, labels: Array) -> float:
    """The share whose best class is the right one."""
    return float((logits.argmax(1) == labels).mean())


def table(row: dict[str, Any]) -> str:
    """One row as lines for a terminal, in the order in which peers were asked."""
    lines = [
        f"{row['model']} {row['dtype']}, {row['images']} images: float64 names "
        f"{row['top1']:.2%} of them",
        f"  {'peer':12}{'top-1':>9}{'as float64':>12}{'error':>10}{'largest':>10}",
    ]
    for peer, result in row["peers"].items():
        if "top1" not in result:
            lines.append(f"  {peer:12}!! {result['status']}: {result['reason']}")
            continue
        lines.append(
            f"  {peer:12}{result['top1']:9.2%}{result['top1_agreement']:12.2%}"
            f"{result['error_rms']:10.1e}{result['error']:10.1e}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0]
    )
    p.add_argument("folder", type=Path, help="labelled images, a folder for each class")
    p.add_argument("model", nargs="?", default="pvt_nano", help="as pvt eval takes it: a name, ...")
    p.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    p.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    p.add_argument("--calibrate", type=Path, help="folder of images for int8, as FOLDER")
    p.add_argument("--images", type=int, default=10_000, help="at most so many (default 10000)")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--json", type=Path, help="write everything to this file")
    return p


if __name__ == "__main__":
    main()
