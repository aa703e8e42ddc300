"""Models of timm and transformers before and after `pvt_ext.accelerate`, on the CPU in float32.

    python -m benchmarks.accelerate [--batch 1] [--seconds 10] [--threads 2] [--json FILE]

Both take turns in one process; the ratio is the model's own time over that of the accelerated one.
Weights are random: speed does not depend on them. Needs timm and transformers.
"""

import argparse
from collections.abc import Iterator
from copy import deepcopy

import timm
import torch
import transformers
from torch import nn

import pvt_ext
from benchmarks.common import begin, compared, write_json

_B2 = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]}
_HEADS = {"num_attention_heads": [1, 2, 5, 8]}


def models() -> Iterator[tuple[str, nn.Module, int]]:
    """Name, model and image size."""
    yield "timm pvt_v2_b2", timm.create_model("pvt_v2_b2"), 224
    pvt = transformers.PvtConfig(**_B2, **_HEADS, mlp_ratios=[8, 8, 4, 4])
    yield "transformers Pvt, small", transformers.PvtForImageClassification(pvt), 224
    v2 = transformers.PvtV2Config(**_B2, **_HEADS, mlp_ratios=[8, 8, 4, 4])
    yield "transformers PvtV2, b2", transformers.PvtV2ForImageClassification(v2), 224
    v2 = transformers.PvtV2Config(**_B2, **_HEADS, mlp_ratios=[8, 8, 4, 4], linear_attention=True)
    yield "transformers PvtV2, b2 linear", transformers.PvtV2ForImageClassification(v2), 224
    for size in (224, 512):
        segformer = transformers.SegformerModel(transformers.SegformerConfig(**_B2))
        yield "transformers SegFormer encoder, b2", segformer, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    args = begin(parser, seconds=10)

    print(f"timm {timm.__version__}, transformers {transformers.__version__}")
    print(f"{'model':36} {'size':>5} {'own ms':>9} {'swapped':>9} {'ratio':>6}")
    rows = []
    for name, own, size in models():
        own.eval()
        swapped = deepcopy(own)
        pvt_ext.accelerate(swapped)
        x = torch.randn(args.batch, 3, size, size)
        row = compared(
            {"ours": lambda m=swapped, x=x: m(x), "own": lambda m=own, x=x: m(x)}, args.seconds
        )
        ms = row["milliseconds"]
        print(
            f"{name:36} {size:5} {ms['own']:9.1f} {ms['ours']:9.1f} {row['ratio']:6.2f}", flush=True
        )
        rows.append({"model": name, "size": size, "batch": args.batch, **row})
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
