"""One step: forward, backward, clip, update; and the state that steps change."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pvt_ext.model import PVT
from pvt_ext.training.config import Config
from pvt_ext.training.data import Batch
from pvt_ext.training.mix import mix
from pvt_ext.training.processes import Processes, TrainingError
from pvt_ext.training.randomness import Stream, generator, seed_torch
from pvt_ext.training.recipe import make_optimizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step(NamedTuple):
    """Of the images of all processes: the loss, and the gradient's norm before clipping."""

    loss: float
    grad_norm: float


class Learner:
    """Model, optimiser, gradient scaler and moving average.

    Args:
        model: to be trained; moved to the device of ``processes``.
        config: of the run.
        processes: that share each step.
    """

    def __init__(self, model: PVT, config: Config, processes: Processes) -> None:
        run = config.run
        self.config = config
        self.processes = processes
        self.device = processes.device
        self.model = model.to(self.device)
        self.model.set_grad_checkpointing(config.model.grad_checkpointing)
        self.optimizer = make_optimizer(model, config.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=run.precision == "fp16")
        self.ema: AveragedModel | None = None
        if run.ema is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(run.ema))
        if run.compile:
            model.compile()  # in place: the names of the weights stay
        self.network = processes.share(model)

    @property
    def averaged(self) -> PVT:
        """The model to keep: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    def autocast(self) -> torch.autocast:
        """The run's precision."""
        return autocast(self.device, self.config.run.precision)

    def step(self, batches: Sequence[Batch], rate: float, epoch: int, number: int) -> Step:
        """Learn from some batches, together those of one step.

        Args:
            rate: learning rate.
            epoch, number: of the step, from 0.

        Raises:
            TrainingError: loss or gradient is not finite; the weights are then as before.
        """
        run, rank = self.config.run, self.processes.rank
        seed_torch(run.seed, epoch, number, rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            rng = generator(run.seed, Stream.MIX, epoch, number * len(batches) + i, rank)
            with self._shared_gradients(last=i == len(batches) - 1):
                part = self._loss(batch, rng) / len(batches)
                self.scaler.scale(part).backward()
            loss += part.detach()
        loss_value = self.processes.mean(loss).item()

        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm_value = norm.item()
        self._check_finite(loss_value, norm_value, rate, epoch, number)
        if self.config.optimizer.clip_grad is not None:
            clip_grads_with_norm_(parameters, self.config.optimizer.clip_grad, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return Step(loss_value, norm_value)

    def _loss(self, batch: Batch, rng: Any) -> Tensor:
        images, labels = (x.to(self.device, non_blocking=True) for x in batch)
        images, targets = mix(images, labels, self.model.num_classes, self.config.mix, rng)
        with self.autocast():
            logits = self.network(images)
        return F.cross_entropy(logits.float(), targets)

    def _shared_gradients(self, last: bool) -> Any:
        # Gradients go to the other processes with the last batch of a step only.
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def _check_finite(self, loss: float, norm: float, rate: float, epoch: int, number: int) -> None:
        # In fp16 a gradient that is not finite is the scaler's to handle: it skips the step.
        flawed = (
            [("loss", loss)] if self.scaler.is_enabled() else [("loss", loss), ("gradient", norm)]
        )
        for what, value in flawed:
            if value - value != 0:  # NaN or infinite
                raise TrainingError(
                    f"the {what} is {value} in epoch {epoch}, step {number}, at learning rate "
                    f"{rate:.3g}; a smaller optimizer.lr, optimizer.clip_grad or run.precision "
                    "fp32 may help"
                )

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty unless that run was in fp16
            self.scaler.load_state_dict(state["scaler"])
        if (self.ema is None) != (state["ema"] is None):
            raise ValueError("run.ema: expected as in the run that is resumed: on or off")
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to a precision; none for fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
