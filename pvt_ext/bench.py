"""How fast a model is on this machine, packed in each precision and in plain PyTorch, in turns.

For other runtimes, peak memory and the processor's limit there is ``python -m benchmarks.compare``
in the repository.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pvt_ext.inference import pack
from pvt_ext.model import create_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_MIN_RUNS = 5


@dataclass(frozen=True)
class Timing:
    """One way to run a model.

    Attributes:
        name: ``"pytorch fp32"``, the model with ``fused=False``, or ``"pvt fp32"`` etc., packed
            and scripted as :func:`~pvt_ext.export.export_torchscript` writes it.
        median_ms, low_ms, high_ms: of a batch; the median and the quartiles.
        images_per_s: at the median.
        ratio: how many times as fast as plain PyTorch in float32.
        error: largest difference of a logit from plain PyTorch's, relative to the largest logit.
    """

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    ratio: float
    error: float

    def as_dict(self) -> dict[str, str | float]:
        return asdict(self)


def bench(
    name: str,
    *,
    dtypes: Sequence[str] = tuple(DTYPES),
    batch: int = 1,
    size: tuple[int, int] = (224, 224),
    seconds: float = 5.0,
) -> list[Timing]:
    """Time a model with random weights on random images, on ``torch.get_num_threads()`` threads.

    Args:
        name: a name in :func:`~pvt_ext.variants.list_models`.
        dtypes: out of ``"fp32"``, ``"bf16"``, ``"int8"``.
        batch: images at a time.
        size: ``(height, width)`` of them.
        seconds: of measuring, in all; each way runs at least 5 times.

    Returns:
        plain PyTorch in float32, then one for each dtype.

    Raises:
        ValueError: an unknown name or dtype, a batch below 1, or images too small for the model.
    """
    unknown = [dtype for dtype in dtypes if dtype not in DTYPES]
    if unknown:
        raise ValueError(f"dtypes: expected some of {', '.join(DTYPES)}, got {unknown[0]!r}")
    if batch < 1:
        raise ValueError(f"batch: expected at least 1 image, got {batch}")
    model = create_model(name, fused=False).eval()
    runs: dict[str, Callable[[Tensor], Tensor]] = {"pytorch fp32": model}
    for dtype in dtypes:
        runs[f"pvt {dtype}"] = torch.jit.script(pack(model, DTYPES[dtype]))
    x = torch.randn(batch, 3, *size)
    times: dict[str, list[float]] = {way: [] for way in runs}
    with torch.inference_mode():
        logits = {way: run(x) for way, run in runs.items()}
        for run in runs.values():
            run(x)  # TorchScript optimises in the second run
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["pytorch fp32"]) < _MIN_RUNS:
            for way, run in runs.items():
                run(x)  # not counted: caches hold what the one before left there
                start = time.perf_counter()
                run(x)
                times[way].append((time.perf_counter() - start) * 1e3)
    plain = statistics.median(times["pytorch fp32"])
    expected = logits["pytorch fp32"]
    result = []
    for way, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        error = (logits[way] - expected).abs().max() / expected.abs().max()
        result.append(
            Timing(way, median, low, high, batch * 1e3 / median, plain / median, error.item())
        )
    return result
