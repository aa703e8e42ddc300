"""Whole models: fused operators beside plain PyTorch.

    python -m benchmarks.model [pvt_small ...] [--seconds 4] [--threads 2] [--json FILE]

`eager` is the reference (`fused=False`), `sdpa` the same with torch's scaled_dot_product_attention.
All run eagerly with the same weights and input. The ratio is to the faster of the two; `error` is
the largest difference of our logits from eager's, relative to the largest logit.
"""

import argparse
import json
import statistics
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import interleaved, machine, spread
from benchmarks.ops import sdpa
from pvt_ext import PVT, create_model
from pvt_ext.nn import Attention


class SdpaAttention(Attention):
    """The published block as one would write it today: no operator of this library."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        out = sdpa(self.q(x), self.kv(self._reduce(x, H, W)), self.num_heads, self.scale)
        return self.proj(out)


def with_sdpa(model: PVT) -> PVT:
    """``model``, an unfused one, with every attention replaced."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = SdpaAttention
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["pvt_tiny", "pvt_small"])
    parser.add_argument("--seconds", type=float, default=4.0, help="per row (default 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(machine())
    columns = " ".join(f"{heading:>8}" for heading in ("ours ms", "eager", "sdpa"))
    print(f"{'model':10} {'dtype':9} {'batch':>5} {columns} {'ratio':>6} {'error':>8}")
    rows = []
    for name in args.names:
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            ours = create_model(name).eval()
            models = {"ours": ours, "eager": create_model(name, fused=False).eval()}
            models["sdpa"] = with_sdpa(create_model(name, fused=False).eval())
            for model in models.values():
                model.load_state_dict(ours.state_dict())
                model.to(dtype)
            for batch in (1, 8):
                x = torch.randn(batch, 3, 224, 224, dtype=dtype)
                runs = {peer: partial(model, x) for peer, model in models.items()}
                with torch.inference_mode():
                    times = interleaved(runs, args.seconds)
                    a, b = runs["ours"]().double(), runs["eager"]().double()
                error = ((a - b).abs().max() / b.abs().max()).item()
                median = {peer: statistics.median(values) for peer, values in times.items()}
                ratio = min(median["eager"], median["sdpa"]) / median["ours"]
                kind = str(dtype).removeprefix("torch.")
                numbers = " ".join(f"{median[peer]:8.1f}" for peer in models)
                numbers += f" {ratio:6.2f} {error:8.1e}"
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
