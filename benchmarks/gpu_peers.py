"""What is compared on a GPU: the same weights in bfloat16, each runtime as its users would run it.

``PEERS[name](setup)`` returns what runs a float32 batch ``[batch, 3, H, W]`` on the device to
float32 logits, or raises NotAvailableError.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.job import NotAvailableError
from benchmarks.sdpa import with_sdpa
from pvt_ext import PVT, export_torchscript
from tests.cuda_graph import captured
from tests.models import lively

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setup:
    """One cell of the table."""

    model: str
    batch: int
    size: tuple[int, int]
    device: torch.device
    folder: Path  # for files

    def input(self) -> Tensor:
        return torch.randn(self.batch, 3, *self.size, device=self.device)

    def plain(self, dtype: torch.dtype = torch.bfloat16) -> PVT:
        return lively(self.model, fused=False).to(self.device, dtype)


def ours(setup: Setup) -> Run:
    path = setup.folder / f"{setup.model}.pt"
    if not path.exists():
        export_torchscript(lively(setup.model), path, dtype="bf16")
    return torch.jit.load(path, map_location=setup.device)


def ours_graph(setup: Setup) -> Run:
    if setup.device.type != "cuda":
        raise NotAvailableError("graphs are CUDA's")
    return captured(ours(setup), setup.input())


class InBfloat16(torch.nn.Module):
    """A bfloat16 model with float32 images and logits."""

    def __init__(self, model: PVT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()


def eager(setup: Setup) -> Run:
    return InBfloat16(setup.plain())


def sdpa(setup: Setup, backend: SDPBackend) -> Run:
    run = InBfloat16(with_sdpa(setup.plain()))

    def with_backend(x: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return run(x)

    try:
        with_backend(setup.input())
    except RuntimeError as error:
        raise NotAvailableError(str(error).splitlines()[0]) from error
    return with_backend


def compiled(setup: Setup) -> Run:
    run = torch.compile(
        InBfloat16(with_sdpa(setup.plain())), mode="max-autotune", dynamic=False, fullgraph=True
    )

    def step(x: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return run(x)

    return step


def aotinductor(setup: Setup) -> Run:
    program = torch.export.export(InBfloat16(with_sdpa(setup.plain())), (setup.input(),))
    path = setup.folder / f"{setup.model}-b{setup.batch}.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))


PEERS: dict[str, Callable[[Setup], Run]] = {
    "ours": ours,
    "ours, graph": ours_graph,
    "eager": eager,
    "sdpa flash": partial(sdpa, backend=SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": partial(sdpa, backend=SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": partial(sdpa, backend=SDPBackend.EFFICIENT_ATTENTION),
    "sdpa math": partial(sdpa, backend=SDPBackend.MATH),
    "max-autotune": compiled,
    "aotinductor": aotinductor,
}
SLOW_TO_PREPARE = ("max-autotune", "aotinductor")  # a minute or two
