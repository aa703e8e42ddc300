"""Accuracy on a data set: each image once, shared out among the processes."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pvt_ext.training.data import one_line_errors
from pvt_ext.training.processes import Processes


@dataclass(frozen=True)
class Accuracy:
    """Of so many images: mean cross-entropy, and the share in percent whose class is the first, or
    among the first five, of the answer."""

    images: int
    loss: float
    top1: float
    top5: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    processes: Processes,
    autocast: torch.autocast,
) -> Accuracy:
    """Run ``model``, in evaluation mode from here on, on every image of every process's loader."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
    for images, labels in one_line_errors(loader):
        images, labels = (x.to(processes.device, non_blocking=True) for x in (images, labels))
        with autocast:
            logits = model(images)
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack(
            [torch.tensor(len(labels)).to(loss), loss, hits[:, 0].sum(), hits.sum()]
        )
    count, loss_sum, top1, top5 = processes.sum(sums).tolist()
    return Accuracy(int(count), loss_sum / count, 100 * top1 / count, 100 * top5 / count)
