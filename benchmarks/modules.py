"""The operators of a packed model beside the PyTorch modules that they replace.

    python -m benchmarks.modules [pvt_small pvt_v2_b2 pvt_v2_b2_li] [--dtype fp32 bf16]
        [--batch 1 8] [--size 224] [--seconds 1] [--threads 2] [--json FILE]

Per stage: patch embedding, `x + attn(norm1(x))` and `x + mlp(norm2(x))`. `eager` is the model
with `fused=False` in the same dtype, `sdpa` the same with torch's scaled_dot_product_attention. All
take turns in one process; the ratio is to the faster of them: above 1 ours is faster.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Runs, begin, compared, row_text, write_json
from benchmarks.compare import image_size
from benchmarks.ops import sdpa
from pvt_ext import pack
from pvt_ext.nn import as_map
from tests.models import lively

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def candidates(name: str, dtype: torch.dtype, x: Tensor) -> Iterator[tuple[str, Runs]]:
    """Every operator of a model for a batch ``x``: a label, and what to run."""
    plain = lively(name, fused=False)
    packed = pack(plain, dtype)
    plain = plain.to(dtype)
    for i, (theirs, ours) in enumerate(zip(plain.stages, packed.stages, strict=True), start=1):
        yield (
            f"stage {i}, patch_embed",
            {
                "ours": partial(ours.patch_embed, x),
                "eager": partial(theirs.patch_embed, x.to(dtype)),
            },
        )
        with torch.inference_mode():
            tokens, (H, W) = ours._embed(x, True)
            x = ours(x)[0]
        yield from halves(f"stage {i}", theirs.blocks[0], ours.blocks[0], tokens, (H, W), dtype)
        x = as_map(x, H, W) if i < len(plain.stages) else x


def halves(
    label: str, theirs: Any, ours: Any, tokens: Tensor, grid: tuple[int, int], dtype: torch.dtype
) -> Iterator[tuple[str, Runs]]:
    H, W = grid
    buffer, x = tokens.clone(), tokens.to(dtype)  # ours overwrites its tokens: it gets a copy

    def attention_with_sdpa() -> Tensor:
        attn, normed = theirs.attn, theirs.norm1(x)
        kv = attn.kv(attn._reduce(normed, H, W))
        return x + attn.proj(sdpa(attn.q(normed), kv, attn.num_heads, attn.scale))

    yield (
        f"{label}, attention",
        {
            "ours": lambda: ours.attn(buffer.copy_(tokens), H, W),
            "eager": lambda: x + theirs.attn(theirs.norm1(x), H, W),
            "sdpa": attention_with_sdpa,
        },
    )
    yield (
        f"{label}, mlp",
        {
            "ours": lambda: ours.mlp(buffer.copy_(tokens), H, W),
            "eager": lambda: x + theirs.mlp(theirs.norm2(x), H, W),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["pvt_small", "pvt_v2_b2", "pvt_v2_b2_li"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--size", type=image_size, default=(224, 224), help="224 or 800x1280")
    args = begin(parser, seconds=1)

    print(f"{'operator':36} {'dtype':5} {'batch':>5} {row_text()}")
    rows = []
    for model in args.models:
        for dtype in args.dtype:
            for B in args.batch:
                x = torch.randn(B, 3, *args.size)
                for label, runs in candidates(model, DTYPES[dtype], x):
                    row = compared(runs, args.seconds)
                    label = f"{model}, {label}"
                    print(f"{label:36} {dtype:5} {B:5} {row_text(row)}", flush=True)
                    rows.append({"operator": label, "dtype": dtype, "batch": B, **row})
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
