"""The processes of a run, as torchrun starts them; without torchrun there is one."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class TrainingError(RuntimeError):
    """A run that cannot go on; the message is for the person who started it."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def share(self, model: nn.Module) -> nn.Module:
        """``model`` as one whose gradients are averaged over the processes."""
        if self.world_size == 1:
            return model
        # Of depthwise convolutions, whose gradients have other strides along a side of 1.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Mean of ``x`` over the processes, in place."""
        return self.sum(x).div_(self.world_size)


@contextmanager
def start_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the others of torchrun, by NCCL on GPUs and by gloo on CPUs.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``, which is a GPU if there is one.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device: expected a GPU (cuda), but this torch sees none")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if not dist.is_torchelastic_launched():
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=place if on_gpu else None)
    yield Processes(dist.get_rank(), dist.get_world_size(), place)
    # Not after an error: the others may wait for this one, and torchrun ends them when it exits.
    dist.destroy_process_group()
