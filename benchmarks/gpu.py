"""Exported bfloat16 models on a GPU, beside PyTorch, torch.compile and AOTInductor.

    python -m benchmarks.gpu [pvt_small pvt_tiny pvt_medium] [--batch 256 8 1 64] [--minutes 8]
        [--json FILE] [--plot STEM]

First what the GPU can do (a large copy, a large product), then each operator of the first model
beside the time that its products and its tensors take at that rate, and beside what was predicted
before any of it ran on a GPU; then whole models. Candidates take turns; times are CUDA's, of calls
one after the other on inputs that change. Compilers take minutes, so models are measured without
them first and then again, with them, as long as there is time; a cell that is left out says so.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pvt_ext
from benchmarks.blocks import Recorder
from benchmarks.common import version
from benchmarks.compare import image_size, progress
from benchmarks.gpu_peers import PEERS, SLOW_TO_PREPARE, Run, Setup
from benchmarks.job import NotAvailableError
from benchmarks.report import ERROR_LIMIT, accuracy, finish, is_right, summarise
from benchmarks.sdpa import with_sdpa
from pvt_ext import pack
from tests.models import lively

# The prediction: what a fused kernel reaches of a copy and of the library's product. On Hopper the
# library multiplies by wgmma, our kernels by mma.sync, which has 0.78 of that rate; 0.70 of either
# is left beside the loads of operands, LayerNorm, softmax and GELU. Not fitted to any measurement.
COPY_SHARE, PRODUCT_SHARE, MMA_SYNC_ON_HOPPER = 0.88, 0.70, 0.78
MISS = 1.25  # from where on a time is marked, as one to explain

# What a compiler needs for one model and batch: the first took more than 250 s beside an H200,
# later ones, which find much of it done, less than 100.
COMPILE_SECONDS = 300


class Clock:
    """Milliseconds of work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, work: Callable[[], object]) -> float:
        if not self.cuda:
            begin = time.perf_counter()
            work()
            return (time.perf_counter() - begin) * 1e3
        self.start.record()
        work()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


def ceilings(device: torch.device, clock: Clock) -> dict[str, float]:
    """GB/s of a copy, reading and writing counted; TFLOP/s of a product in bfloat16."""
    side = 8192 if clock.cuda else 512
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    x = torch.randn(side * side, device=device)
    y = torch.empty_like(x)
    copy = min(clock.milliseconds(lambda: y.copy_(x)) for _ in range(20))
    product = min(clock.milliseconds(lambda: a @ b) for _ in range(20))
    return {"copy_gbytes": 2 * x.nbytes / copy / 1e6, "tflops": 2 * side**3 / product / 1e9}


def predict(flops: float, size: float, device: torch.device, roof: dict[str, float]) -> float:
    """Milliseconds of an operator with these floating-point operations and bytes of tensors."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    tflops = roof["tflops"] * PRODUCT_SHARE * (MMA_SYNC_ON_HOPPER if hopper else 1)
    return max(flops / tflops / 1e9, size / (roof["copy_gbytes"] * COPY_SHARE) / 1e6)


def operators(name: str, x: Tensor, clock: Clock, roof: dict[str, float]) -> list[dict[str, Any]]:
    """Each operator of a forward pass, its tensors not in a cache."""
    model = pack(lively(name), torch.bfloat16).to(x.device)
    evict = torch.zeros(1 << 26 if clock.cuda else 1, device=x.device)
    with Recorder() as recorder:
        model(x)
    rows: dict[str, dict[str, Any]] = {}
    for call in recorder.calls:
        if call.label in rows:
            rows[call.label]["count"] += 1
            continue
        times = []
        for _ in range(20):
            evict.sum()  # reading: what was written would be written back in the call's time
            times.append(clock.milliseconds(call))
        floor = max(call.flops / roof["tflops"] / 1e9, call.bytes / roof["copy_gbytes"] / 1e6)
        rows[call.label] = {
            "operator": call.label,
            "count": 1,
            "milliseconds": statistics.median(times),
            "floor_ms": floor,
            "predicted_ms": predict(call.flops, call.bytes, x.device, roof),
        }
    return list(rows.values())


def prepare(
    setup: Setup, peers: Sequence[str], deadline: float, reference: Tensor, x: Tensor
) -> tuple[dict[str, Run], dict[str, dict[str, Any]]]:
    """What runs, and for every peer its state and the error of its logits.

    deadline: when a compiler has to be done.
    """
    runs: dict[str, Run] = {}
    states: dict[str, dict[str, Any]] = {}
    for peer in peers:
        progress(f"{setup.model}, batch {setup.batch}: preparing {peer}")
        if peer in SLOW_TO_PREPARE and time.monotonic() + COMPILE_SECONDS > deadline:
            states[peer] = {"status": "not measured", "reason": "no time left to compile"}
            continue
        torch.compiler.reset()
        try:
            run = PEERS[peer](setup)
            with torch.inference_mode():
                logits = run(x).clone()
        except NotAvailableError as error:
            states[peer] = {"status": "not available", "reason": str(error)}
            continue
        except Exception as error:  # a compiler may fail in any way, and costs its own row alone
            states[peer] = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:200]}
            continue
        numbers = accuracy(logits.double().cpu().numpy(), reference.cpu().numpy())
        right = is_right(numbers, "bf16")
        states[peer] = {"status": "ok" if right else "wrong", **numbers}
        if not right:
            states[peer]["reason"] = f"error above {ERROR_LIMIT['bf16']:.0e}"
        runs[peer] = run
    progress("")
    return runs, states


def take_turns(
    runs: dict[str, Run], inputs: list[Tensor], clock: Clock, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds per batch; a turn is as many calls as take 10 ms, all inputs in order."""
    calls = {}
    for peer, run in runs.items():
        once = min(clock.milliseconds(lambda run=run: run(inputs[0])) for _ in range(3))
        calls[peer] = max(1, round(10 / once))
    times: dict[str, list[float]] = {peer: [] for peer in runs}
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < 5 or time.monotonic() < end:
        for peer, run in runs.items():
            first = rounds * calls[peer]

            def work(run: Run = run, first: int = first, count: int = calls[peer]) -> None:
                for i in range(first, first + count):
                    run(inputs[i % len(inputs)])

            times[peer].append(clock.milliseconds(work) / calls[peer])
        rounds += 1
    return times


def compare(
    setup: Setup, peers: Sequence[str], seconds: float, deadline: float, roof: dict[str, float]
) -> dict[str, Any]:
    """One row, in the form that benchmarks.compare gives it."""
    clock = Clock(setup.device)
    # As many as do not fit into the second-level cache together.
    count = min(64, max(2, (1 << 28) // (setup.batch * 3 * setup.size[0] * setup.size[1] * 4)))
    inputs = [setup.input() for _ in range(count)]
    exact = with_sdpa(setup.plain(torch.float64))
    reference = torch.cat([exact(part.double()) for part in inputs[0].split(8)])
    del exact
    runs, states = prepare(setup, peers, deadline, reference, inputs[0])
    with torch.inference_mode():
        times = take_turns(runs, inputs, clock, seconds)
    row: dict[str, Any] = {
        "model": setup.model,
        "dtype": "bf16",
        "batch": setup.batch,
        "size": list(setup.size),
        "gflop": 2 * pvt_ext.summary(setup.model, setup.size).macs * setup.batch / 1e9,
        "peak": {"gflops": roof["tflops"] * 1e3},
        "peers": {
            peer: state | (summarise(times[peer]) if peer in times else {})
            for peer, state in states.items()
        },
    }
    finish(row)
    return row


def show_operators(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'operator':36}{'calls':>6}{'us':>9}{'floor':>9}{'predicted':>10}{'ratio':>7}")
    for row in rows:
        us, floor, predicted = (
            row[key] * 1e3 for key in ("milliseconds", "floor_ms", "predicted_ms")
        )
        note = "  !! slower than predicted" if us > MISS * predicted else ""
        print(
            f"{row['operator']:36}{row['count']:6}{us:9.1f}{floor:9.1f}{predicted:10.1f}"
            f"{us / predicted:7.2f}{note}"
        )


def show(row: dict[str, Any]) -> None:
    H, W = row["size"]
    print(f"\n{row['model']} bf16 batch {row['batch']}, {H}x{W}")
    print(
        f"  {'peer':16}{'median ms':>10}{'quartiles':>19}{'images/s':>10}{'ratio':>7}{'error':>9}"
    )
    timed = {peer: r for peer, r in row["peers"].items() if "median_ms" in r}
    for peer in sorted(timed, key=lambda peer: timed[peer]["median_ms"]):
        r = timed[peer]
        quartiles = f"{r['low_ms']:.3f}..{r['high_ms']:.3f}"
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.2f}"
        note = "  best peer" if peer == row["best_peer"] else ""
        note = note if r["status"] == "ok" else f"  !! {r['status'].upper()}: {r['reason']}"
        print(
            f"  {peer:16}{r['median_ms']:10.3f}{quartiles:>19}{r['images_per_s']:10.0f}{ratio:>7}"
            f"{r['error']:9.1e}{note}"
        )
    for peer, r in row["peers"].items():
        if peer not in timed:
            print(f"  {peer:16}!! {r['status']}: {r['reason']}")


def machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU: a trial run"
    facts = {
        "processor": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": pvt_ext.build_info()["cuda_architectures"],
        "pvt_ext": version(),
        "date": datetime.date.today().isoformat(),
    }
    return {"line": f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", **facts}


def draw(data: dict[str, Any], stem: Path | None) -> None:
    if stem and data["rows"]:
        from benchmarks.plot import plot

        plot(data, stem)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("models", nargs="*", default=["pvt_small", "pvt_tiny", "pvt_medium"])
    parser.add_argument("--batch", nargs="+", type=int, default=[256, 8, 1, 64])
    parser.add_argument("--size", type=image_size, default=(224, 224), help="224 or HEIGHTxWIDTH")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring per row")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all (default 8)")
    parser.add_argument("--device", default="cuda", help="cpu tries the program itself")
    parser.add_argument("--json", type=Path, help="write everything to this file, row by row")
    parser.add_argument("--plot", type=Path, help="write STEM.svg and STEM.png", metavar="STEM")
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"no GPU, or no CUDA build of torch: {torch.__version__}")
    torch.manual_seed(0)
    clock = Clock(device)
    facts = machine(device)
    data: dict[str, Any] = {"machine": facts, "rows": []}
    cells = [(name, batch) for name in args.models for batch in args.batch]
    rows: dict[tuple[str, int], dict[str, Any]] = {}

    def measure(name: str, batch: int, folder: str, compilers_until: float) -> None:
        setup = Setup(name, batch, args.size, device, Path(folder))
        rows[name, batch] = compare(setup, args.peers, args.seconds, compilers_until, roof)
        data["rows"] = [rows[cell] for cell in cells if cell in rows]
        show(rows[name, batch])
        if args.json:
            args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        roof = data["ceilings"] = ceilings(device, clock)
        print(f"{facts['line']}\ncopy {roof['copy_gbytes']:.0f} GB/s, bf16 {roof['tflops']:.0f} TF")
        first = torch.randn(args.batch[0], 3, *args.size, device=device)
        data["operators"] = operators(args.models[0], first, clock, roof)
        show_operators(data["operators"])
        for name, batch in cells:
            if time.monotonic() + 4 * args.seconds > deadline:
                print(f"\n!! {name}, batch {batch}: NOT MEASURED, no time left")
            else:
                measure(name, batch, folder, compilers_until=0)
        draw(data, args.plot)
        for name, batch in cells if set(SLOW_TO_PREPARE) & set(args.peers) else []:
            if time.monotonic() + COMPILE_SECONDS > deadline:
                print(f"\n!! {name}, batch {batch}: NOT COMPILED, no time left")
            else:
                measure(name, batch, folder, compilers_until=deadline)
                draw(data, args.plot)


if __name__ == "__main__":
    main()
