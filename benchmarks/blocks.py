"""Where the time of a packed model goes: each operator beside the roof of this processor.

    python -m benchmarks.blocks [pvt_small] [--dtype fp32 bf16 int8] [--batch 1 8] [--size 224]
        [--json FILE]

The roof of an operator is the time its multiply-adds take at the peak (fma_peak.cpp) or its tensors
take at the speed of a large copy, whichever is longer. The operators run in the order of the model,
in turns with the whole model and with the peak.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.common import machine
from benchmarks.compare import image_size
from benchmarks.fma_peak import FmaPeak
from pvt_ext import PVT, pack
from tests.models import lively

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Call:
    """An operator of this library and what a model gave it."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor

    def __call__(self) -> Tensor:
        return self.op(*self.args, **self.kwargs)

    @property
    def label(self) -> str:
        shape = "x".join(str(size) for size in self.args[0].shape)
        return f"{self.op.__name__} {shape}".replace(".default", "")

    @property
    def flops(self) -> float:
        return flop_registry[self.op.overloadpacket](*self.args, **self.kwargs, out_val=self.out)

    @property
    def bytes(self) -> float:
        """Of all inputs and outputs; a tensor that is overwritten counts twice."""
        tensors = tree_leaves((self.args, self.kwargs, self.out))
        return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


class Recorder(TorchDispatchMode):
    """Keeps every call of an operator of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "pvt":
            self.calls.append(Call(func, args, kwargs or {}, out))
        return out


def copy_speed() -> float:
    """GB/s of a copy between tensors larger than the caches, reading and writing counted."""
    x = torch.zeros(1 << 26)
    out = torch.empty_like(x)
    out.copy_(x)
    return 2 * x.nbytes / min(seconds(lambda: out.copy_(x)) for _ in range(10)) / 1e9


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(model: PVT, x: Tensor, dtype: str, duration: float, gbytes: float) -> dict[str, Any]:
    """Rows of the table, and what the whole model takes."""
    peak = FmaPeak(dtype, torch.get_num_threads())
    whole: list[float] = []
    peaks: list[float] = []
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        with Recorder() as recorder:
            model(x)
        model(x)
        end = time.perf_counter() + duration
        while len(whole) < 5 or time.perf_counter() < end:
            peaks.append(peak.measure(0.05))
            model(x)  # not counted: the measurement of the peak put the threads to sleep
            whole.append(seconds(lambda: model(x)) * 1e3)
            # In the model's order, so that caches hold what they hold in the model.
            for call in recorder.calls:
                times.setdefault(call.label, []).append(seconds(call) * 1e3)
    gflops = statistics.median(peaks)
    rows = []
    for label, values in times.items():
        call = next(call for call in recorder.calls if call.label == label)
        ms = statistics.median(values)
        rows.append(
            {
                "operator": label,
                "count": len(values) // len(whole),
                "milliseconds": ms,
                "gflops": call.flops / ms / 1e6,
                "gbytes": call.bytes / ms / 1e6,
                # Without a peak (no such instruction here), what is known of the roof: memory.
                "of_roof": max(call.flops / gflops if gflops else 0.0, call.bytes / gbytes)
                / 1e6
                / ms,
            }
        )
    return {"milliseconds": statistics.median(whole), "peak_gflops": gflops, "operators": rows}


def show(label: str, result: dict[str, Any]) -> None:
    total, gflops = result["milliseconds"], result["peak_gflops"]
    peak = f"{gflops:.0f} GFLOP/s" if gflops else "unknown (no such instruction here)"
    print(f"\n{label}: {total:.2f} ms, peak {peak}")
    print(
        f"{'operator':34} {'calls':>5} {'ms':>8} {'of all':>7} {'GFLOP/s':>8} {'GB/s':>6} of roof"
    )
    inside = 0.0
    for row in result["operators"]:
        together = row["count"] * row["milliseconds"]
        inside += together
        print(
            f"{row['operator']:34} {row['count']:5} {row['milliseconds']:8.3f} "
            f"{together / total:7.1%} {row['gflops']:8.0f} {row['gbytes']:6.1f} "
            f"{row['of_roof']:7.1%}"
        )
    print(f"{'everything else':34} {'':5} {'':8} {1 - inside / total:7.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.blocks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("models", nargs="*", default=["pvt_small"], help="default pvt_small")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=image_size, default=(224, 224), help="224 or HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="per table (default 5)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gbytes = copy_speed()
    print(f"{machine()}\ncopy: {gbytes:.1f} GB/s")
    tables = []
    for name in args.models:
        for dtype in args.dtype:
            model = pack(lively(name), DTYPES[dtype])
            for batch in args.batch:
                x = torch.randn(batch, 3, *args.size)
                result = measure(model, x, dtype, args.seconds, gbytes)
                show(f"{name} {dtype} batch {batch}, {args.size[0]}x{args.size[1]}", result)
                tables.append({"model": name, "dtype": dtype, "batch": batch, **result})
    if args.json:
        data = {"machine": machine(), "copy_gbytes": gbytes, "tables": tables}
        args.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
