"""Whole models: fused operators beside the published formula in plain PyTorch.

    python -m benchmarks.model [pvt_small ...] [--seconds 4] [--threads 2] [--json FILE]

Both run eagerly with the same weights and input; `error` is the largest difference of their logits
relative to the largest logit.
"""

import argparse
import json
import statistics

import torch

from benchmarks.common import interleaved, machine, spread
from pvt_ext import create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["pvt_tiny", "pvt_small"])
    parser.add_argument("--seconds", type=float, default=4.0, help="per row (default 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(machine())
    headings = f"{'ours ms':>9} {'eager':>9} {'ratio':>6} {'error':>8}"
    print(f"{'model':10} {'dtype':9} {'batch':>5} {headings}")
    rows = []
    for name in args.names:
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            ours = create_model(name).eval()
            eager = create_model(name, fused=False).eval()
            eager.load_state_dict(ours.state_dict())
            ours, eager = ours.to(dtype), eager.to(dtype)
            for batch in (1, 8):
                x = torch.randn(batch, 3, 224, 224, dtype=dtype)
                with torch.inference_mode():
                    runs = {"ours": lambda: ours(x), "eager": lambda: eager(x)}  # noqa: B023
                    times = interleaved(runs, args.seconds)
                    a, b = ours(x).double(), eager(x).double()
                error = ((a - b).abs().max() / b.abs().max()).item()
                median = {peer: statistics.median(values) for peer, values in times.items()}
                ratio = median["eager"] / median["ours"]
                kind = str(dtype).removeprefix("torch.")
                numbers = f"{median['ours']:9.1f} {median['eager']:9.1f} {ratio:6.2f} {error:8.1e}"
                print(f"{name:10} {kind:9} {batch:5} {numbers}", flush=True)
                rows.append(
                    {
                        "model": name,
                        "dtype": kind,
                        "batch": batch,
                        "milliseconds": median,
                        "spread": {peer: spread(values) for peer, values in times.items()},
                        "ratio": ratio,
                        "error": error,
                    }
                )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
