"""Whole models: ours beside the other runtimes, in turns, each in a process of its own.

    python -m benchmarks.compare [pvt_small ...] [--dtype fp32 bf16 int8] [--batch 1 8]
        [--size 224 | 800x1280] [--peers ours openvino ...] [--json FILE] [--plot STEM]

All have the same weights and images. Each peer's logits are compared with float64 in the same run,
and the multiply-add peak of the processor is measured between the turns.
benchmarks/README.md explains the columns.
"""

import argparse
import datetime
import json
import os
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import pvt_ext
from benchmarks.common import processor, version
from benchmarks.fma_peak import CannotCompileError, FmaPeak
from benchmarks.job import DTYPES, Job, save_images, save_weights
from benchmarks.peers import PEERS
from benchmarks.report import ERROR_LIMIT, Array, accuracy, finish, is_right, summarise, table
from benchmarks.sdpa import with_sdpa
from benchmarks.turns import Worker, take_turns, workers


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    machine = begin(args.threads)
    print(f"weights: {args.weights or 'random, seed 0'}; images: {args.size[0]}x{args.size[1]}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="pvt-compare-") as name:
        folder = Path(name)
        # As many as the reference can do in seconds.
        count = max(1, min(16, 16 * 224 * 224 // (args.size[0] * args.size[1])))
        save_images(args.size, folder, args.calibrate, count)
        for model in args.models:
            save_weights(model, folder, args.weights)
            reference = exact_logits(Job(model, "fp32", 1, args.size, args.threads, folder))
            for dtype in args.dtype:
                for batch in args.batch:
                    job = Job(model, dtype, batch, args.size, args.threads, folder)
                    rows.append(compare(job, args.peers, args.seconds, reference))
                    print(f"\n{table(rows[-1])}", flush=True)
                    if args.json:  # after each row, so that what was measured is not lost
                        _write(args.json, machine, vars(args), rows)
    if args.plot:
        from benchmarks.plot import plot

        plot({"machine": machine, "rows": rows}, args.plot)


def exact_logits(job: Job, at_once: int = 1) -> Array:
    """The reference: plain PyTorch in float64, so many images at a time.

    The attention is torch's own, which keeps no matrix of scores: at 800x1280 that is gigabytes.
    """
    model = with_sdpa(job.load(fused=False)).double()
    with torch.inference_mode():
        logits = [model(images.double()) for images in job.images()["test"].split(at_once)]
    return torch.cat(logits).numpy()


def compare(job: Job, peers: list[str], seconds: float, reference: Array) -> dict[str, Any]:
    """One row: every peer prepared, checked, and timed in turns for about ``seconds``."""
    peaks: list[float] = []
    instruction, reason = "", ""
    try:
        peak = FmaPeak(job.dtype, job.threads)
        instruction = peak.instruction
        reason = "" if instruction else f"this processor has no {job.dtype} multiply-add"
    except CannotCompileError as error:
        reason = str(error)
    with workers(peers, job, progress) as started:
        checks = {}
        for worker in started:
            logits = worker.ask("logits") if worker.ok else None
            checks[worker.peer] = None if logits is None else accuracy(logits, reference)
        running = [worker for worker in started if worker.ok]
        progress(f"{job.label}: measuring {', '.join(worker.peer for worker in running)}")
        disturbances = take_turns(
            running, seconds, (lambda: peaks.append(peak.measure())) if instruction else None
        )
        progress("")
    row: dict[str, Any] = {
        "model": job.model,
        "dtype": job.dtype,
        "batch": job.batch,
        "size": list(job.size),
        "gflop": 2 * pvt_ext.summary(job.model, job.size).macs * job.batch / 1e9,
        "peak": {
            "gflops": statistics.median(peaks) if peaks else None,
            "best_gflops": max(peaks, default=None),
            "instruction": instruction,
            "reason": reason,
        },
        "disturbed": {
            by: statistics.fmean(getattr(d, by) for d in disturbances) if disturbances else 0.0
            for by in ("waiting", "others")
        },
        "peers": {worker.peer: _result(worker, checks, job.dtype) for worker in started},
    }
    finish(row)
    return row


def _result(worker: Worker, checks: dict[str, Any], dtype: str) -> dict[str, Any]:
    result = dict(worker.state)
    check = checks[worker.peer]
    if not worker.ok or check is None or not worker.times:
        return result
    if not is_right(check, dtype):
        result["status"] = "wrong"
        result["reason"] = f"error {check['error']:.1e}, limit {ERROR_LIMIT[dtype]:.0e}"
    times = [round(ms, 4) for ms in worker.times]
    return result | check | summarise(worker.times) | {"times_ms": times}


def begin(threads: int) -> dict[str, Any]:
    """Get ready for workers with so many threads, and say where; returns what is to be recorded."""
    # As an interrupt does: the workers are ended and the temporary folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Before any process starts: OpenMP reads it once.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    machine = describe_machine(threads)
    print(machine["line"])
    return machine


def describe_machine(threads: int) -> dict[str, Any]:
    facts = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "cpu_level": pvt_ext.cpu_level(),
        "torch": torch.__version__,
        "pvt_ext": version(),
        "date": datetime.date.today().isoformat(),
    }
    line = (
        f"{facts['processor']}, {facts['cores']} cores, {threads} threads, "
        f"CPU level {facts['cpu_level']}, torch {facts['torch']}, pvt_ext {facts['pvt_ext']}"
    )
    return {"line": line, **facts}


def _write(
    path: Path, machine: dict[str, Any], settings: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    keep = ("seconds", "threads", "size", "peers", "weights")
    kept = {name: settings[name] for name in keep}
    data = {"machine": machine, "settings": kept, "rows": rows}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def progress(text: str) -> None:
    """One line that is written over, on terminals only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def image_size(text: str) -> tuple[int, int]:
    """``224`` or ``800x1280`` (height x width)."""
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0], sides[-1]


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.splitlines()[0]
    )
    p.add_argument("models", nargs="*", default=["pvt_small"], help="default pvt_small")
    p.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    p.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    p.add_argument("--size", type=image_size, default=(224, 224), help="224 or HEIGHTxWIDTH")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--seconds", type=float, default=10.0, help="of measuring per row (default 10)")
    p.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    p.add_argument("--weights", help="a checkpoint (default: random weights)")
    p.add_argument("--calibrate", type=Path, help="folder of images for int8 (default: the photos)")
    p.add_argument("--json", type=Path, help="write everything to this file")
    p.add_argument("--plot", type=Path, help="write STEM.svg and STEM.png", metavar="STEM")
    return p


if __name__ == "__main__":
    main()
