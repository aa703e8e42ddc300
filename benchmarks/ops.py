"""The operators beside PyTorch's own, on the shapes of the published models.

    python -m benchmarks.ops [--seconds 1] [--threads 2] [--json FILE]

`eager` is the published formula: matmul, softmax, matmul; or convolution and LayerNorm on a
feature map. `sdpa` is torch's scaled_dot_product_attention. The ratio is to the faster of them:
above 1 ours is faster.
"""

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Runs, begin, compared, row_text, write_json
from pvt_ext import ops, reference
from tests.cases import ATTENTION, REDUCTION, AttentionCase, ReductionCase


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # B, L, C -> B, h, L, d


def eager_attention(q: Tensor, kv: Tensor, num_heads: int, scale: float) -> Tensor:
    k, v = kv.chunk(2, dim=-1)
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    probs = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
    return (probs @ v).transpose(1, 2).flatten(2)


def sdpa(q: Tensor, kv: Tensor, num_heads: int, scale: float) -> Tensor:
    k, v = kv.chunk(2, dim=-1)
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def candidates(case: AttentionCase | ReductionCase, dtype: torch.dtype) -> tuple[str, Runs, float]:
    """A label, what to run, and the multiply-accumulates of one run."""
    if isinstance(case, AttentionCase):
        q, kv, num_heads, scale = case.inputs(dtype)
        label = f"attention {case.B}x{case.N}x{case.C}, {case.kv_len} keys, {num_heads} heads"
        runs: Runs = {
            "ours": lambda: ops.sra_attention(q, kv, num_heads, scale),
            "eager": lambda: eager_attention(q, kv, num_heads, scale),
            "sdpa": lambda: sdpa(q, kv, num_heads, scale),
        }
        return label, runs, 2 * case.B * case.N * case.kv_len * case.C
    inputs = case.inputs(dtype)
    R = case.sr_ratio
    label = f"reduction {case.B}x{case.H}x{case.W}x{case.C}, R {R}"
    macs = case.B * (case.H // R) * (case.W // R) * (case.C * R) ** 2
    return (
        label,
        {
            "ours": lambda: ops.spatial_reduction(*inputs),
            "eager": lambda: reference.spatial_reduction(*inputs),
        },
        macs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args = begin(parser, seconds=1)

    print(f"{'case':46} {'dtype':9} {row_text()} GFLOP/s")
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for case in [case for case in (*ATTENTION, *REDUCTION) if case.real]:
            for B in (1, 8):
                label, runs, macs = candidates(replace(case, B=B), dtype)
                row = compared(runs, args.seconds)
                name = str(dtype).removeprefix("torch.")
                gflops = 2 * macs / row["milliseconds"]["ours"] / 1e6
                print(f"{label:46} {name:9} {row_text(row)} {gflops:7.0f}", flush=True)
                rows.append({"case": label, "dtype": name, "gflops": gflops, **row})
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
