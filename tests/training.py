"""Small runs for the tests of training: images made on the fly, a model of milliseconds.

As a program it is ``pvt`` with that model among those it knows, for tests in other processes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from models import MINI, MINI_V2, MINI_V2_LI
from PIL import Image

from pvt_ext.variants import VARIANTS, StageSpec

ONE_STAGE = (StageSpec(16, 1, 2, 2, 2, 4, cls_token=False),)  # quick to compile
MINIS = {"mini": MINI, "mini_v2": MINI_V2, "mini_v2_li": MINI_V2_LI, "one_stage": ONE_STAGE}
CLASSES = ("blue", "green", "red")


def make_images(root: Path, per_class: int, seed: int = 0, side: int = 32) -> Path:
    """An ImageFolder whose classes differ in their colour, under noise."""
    rng = np.random.default_rng(seed)
    for channel, name in zip((2, 1, 0), CLASSES, strict=True):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 160, (side, side, 3), dtype=np.uint8)
            pixels[..., channel] += 70
            Image.fromarray(pixels).save(root / name / f"{i:03}.png")
    return root


def small_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """The values of a run of seconds on ``folder/train`` and ``folder/val``; changes are dotted."""
    values: dict[str, Any] = {
        "model": {"name": "mini", "img_size": 32},
        "data": {"train": str(folder / "train"), "val": str(folder / "val"), "workers": 0},
        "run": {"output": str(folder / "run"), "batch_size": 8, "precision": "fp32"},
        "augment": {"crop": "padded", "repeats": 1},
        "optimizer": {"lr": 1e-3, "lr_images": None},
        "schedule": {"epochs": 2, "warmup_epochs": 1},
    }  # fmt: skip
    for key, value in {"run__log_steps": 1, "data__preset": "hf", **changes}.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return values


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(small_values(folder, **changes)))
    return path


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """The log of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    clock = ("seconds", "images_per_s")
    chosen = [line for line in lines if line["kind"] == kind]
    return [{k: v for k, v in line.items() if k not in clock} for line in chosen]


def command(*args: object, processes: int = 1) -> list[str]:
    """The command ``pvt`` in a process, or several under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return [*launcher, __file__, *(str(arg) for arg in args)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


def run(*args: object, processes: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@contextmanager
def small_models() -> Iterator[None]:
    """The small models among those that there are."""
    VARIANTS.update(MINIS)
    try:
        yield
    finally:
        for name in MINIS:
            del VARIANTS[name]


if __name__ == "__main__":
    from pvt_ext.cli import main

    with small_models():
        main()
