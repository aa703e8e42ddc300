"""A call captured in a CUDA graph, for tests and benchmarks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def captured(run: Callable[..., Tensor], *inputs: Any) -> Callable[..., Tensor]:
    """``run`` of inputs like these. A call copies its tensors into the graph's own and replays it.

    The answer is the graph's own too: the next call overwrites it.
    """
    own = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries and TorchScript prepare themselves in the first runs
            run(*own)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*own)

    def replay(*others: Any) -> Tensor:
        for x, other in zip(own, others, strict=True):
            if isinstance(x, Tensor):
                x.copy_(other)
        graph.replay()
        return out

    return replay
