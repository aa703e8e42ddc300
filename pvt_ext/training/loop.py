"""A training run from beginning to end, or from a checkpoint to its end.

The folder of a run (``run.output``) holds ``config.yaml``, ``log.jsonl``, ``last.pth`` (the whole
state), ``best.safetensors`` and ``final.safetensors`` (weights, with what an export needs to know),
``labels.txt`` and ``curves.png``.
"""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import torch
import yaml

import pvt_ext
from pvt_ext.preprocess import Preprocess
from pvt_ext.training.augment import TrainTransform
from pvt_ext.training.config import Config
from pvt_ext.training.curves import plot_curves
from pvt_ext.training.data import (
    EvalImages,
    TrainImages,
    TrainLoader,
    eval_loader,
)
from pvt_ext.training.evaluate import Accuracy, evaluate
from pvt_ext.training.learner import Learner
from pvt_ext.training.log import Log
from pvt_ext.training.models import make_model
from pvt_ext.training.order import BatchOrder
from pvt_ext.training.processes import Processes, TrainingError
from pvt_ext.training.recipe import learning_rate, peak_rate
from pvt_ext.training.sources import open_source, read_classes
from pvt_ext.training.state import Position, load_state, save_state, write_atomically
from pvt_ext.weights import save_weights

LAST = "last.pth"


def train(config: Config, processes: Processes, *, resume: Path | None = None) -> Position:
    """Train as ``config`` says.

    Args:
        processes: of the run, from :func:`~pvt_ext.training.processes.start_processes`.
        resume: a ``last.pth`` to go on from.

    Returns:
        the position at the end.

    Raises:
        ValueError: the configuration, the data or the checkpoint is not as expected.
        TrainingError: the run cannot go on; the last checkpoint is intact.
    """
    training = Training(config, processes, resume)
    try:
        training.run()
    except (ValueError, OSError, RuntimeError) as error:
        raise TrainingError(f"{error}; {training.last_checkpoint()}") from error
    finally:
        training.log.end()
    return training.position


class Training:
    """A run: its parts, and its loops over epochs and steps. Arguments as of :func:`train`."""

    def __init__(self, config: Config, processes: Processes, resume: Path | None) -> None:
        self.config = config
        self.processes = processes
        self.folder = config.run.output
        self.position = Position()
        self.changes: list[str] = []  # of the settings, since the checkpoint
        state = None
        if resume is not None:
            state, self.position = load_state(resume)
        self._open_data()
        torch.manual_seed(config.run.seed)
        model = make_model(config, len(self.classes), with_weights=state is None)
        self.learner = Learner(model, config, processes)
        if state is not None:
            self._restore(state, resume)
        self.log = Log(
            self.folder,
            self.position,
            enabled=processes.is_main,
            tensorboard=config.run.tensorboard,
        )
        if processes.is_main:
            self._describe()

    def _open_data(self) -> None:
        config, processes = self.config, self.processes
        data, run = config.data, config.run
        source = open_source(data.train, read_classes(data.classes) if data.classes else None)
        self.classes = source.classes
        self.order = BatchOrder(
            len(source.labels),
            repeats=config.augment.repeats,
            batch_size=run.batch_size,
            accumulate=run.accumulate,
            rank=processes.rank,
            world_size=processes.world_size,
            seed=run.seed,
        )
        self.peak = peak_rate(config.optimizer, self.order.images_per_step)
        on_gpu = processes.device.type == "cuda"
        transform = TrainTransform(config.augment, config.model.img_size)
        images = TrainImages(source, transform, run.seed, data.cache)
        self.loader = TrainLoader(images, self.order, data.workers, pin_memory=on_gpu)
        self.val_loader = None
        if data.val is not None:
            val = EvalImages(
                open_source(data.val, self.classes),
                Preprocess(data.preset, config.model.img_size),
                processes.rank,
                processes.world_size,
            )
            self.val_loader = eval_loader(val, run.batch_size, data.workers, pin_memory=on_gpu)

    def run(self) -> None:
        """All epochs that are left, and what is written at the end."""
        while self.position.epoch < self.config.schedule.epochs:
            self._epoch()
        if self.processes.is_main:
            self._finish()

    def _epoch(self) -> None:
        epoch, begun = self.position.epoch, time.monotonic()
        self.learner.network.train()
        self.log.begin_epoch(epoch, self.position.step, self.order.steps)
        for batches in self.loader.steps(epoch, self.position.step):
            self._step(batches)
        numbers: dict[str, Any] = {
            "train_loss": self.position.loss_sum / self.order.steps,
            "lr": self._rate(self.order.steps - 1),
        }
        last = epoch + 1 == self.config.schedule.epochs
        if self.val_loader is not None and ((epoch + 1) % self.config.run.eval_epochs == 0 or last):
            numbers |= self._evaluate()
        numbers["seconds"] = time.monotonic() - begun
        self.log.write("epoch", epoch=epoch, **numbers)
        self.log.say(_epoch_line(epoch, self.config.schedule.epochs, numbers))
        self.position.epoch, self.position.step, self.position.loss_sum = epoch + 1, 0, 0.0
        self._save()

    def _step(self, batches: Any) -> None:
        run, position = self.config.run, self.position
        number, rate = position.step, self._rate(position.step)
        step = self.learner.step(batches, rate, position.epoch, number)
        position.loss_sum += step.loss
        position.step += 1
        self.log.advance(step.loss, rate)
        if position.step % run.log_steps == 0:
            self.log.write(
                "step",
                epoch=position.epoch,
                step=number,
                steps=self.order.steps,
                lr=rate,
                loss=step.loss,
                grad_norm=step.grad_norm,
                images_per_s=self.order.images_per_step * self.log.steps_per_second(),
            )
        if position.step % run.checkpoint_steps == 0 and position.step < self.order.steps:
            self._save()

    def _rate(self, step: int) -> float:
        share = step / self.order.steps
        return learning_rate(self.config.schedule, self.peak, self.position.epoch, share)

    def _evaluate(self) -> dict[str, float]:
        assert self.val_loader is not None
        models = {"val": self.learner.model}
        if self.learner.ema is not None:
            models["ema"] = self.learner.averaged
        numbers: dict[str, float] = {}
        for name, model in models.items():
            found = evaluate(model, self.val_loader, self.processes, self.learner.autocast())
            numbers |= {f"{name}_{key}": value for key, value in _shares(found).items()}
            top1 = found.top1  # in the end, that of the weights to keep
        if top1 > self.position.best_top1:
            self.position.best_top1, self.position.best_epoch = top1, self.position.epoch
            self._save_weights("best.safetensors")
        return numbers

    def _save(self) -> None:
        if self.processes.is_main:
            save_state(
                self.folder / LAST,
                self.learner.state_dict(),
                self.position,
                config=self.config.as_dict(),
                classes=self.classes,
                images_per_step=self.order.images_per_step,
            )

    def _save_weights(self, name: str) -> None:
        if not self.processes.is_main:
            return
        path, position = self.folder / name, self.position
        facts = {
            "variant": self.config.model.name,
            "preset": self.config.data.preset,
            "labels": json.dumps(self.classes, ensure_ascii=False),
            "epoch": str(position.epoch),
            "top1": str(position.best_top1),
        }
        try:
            save_weights(self.learner.averaged, path, metadata=facts)
        except OSError as error:
            raise TrainingError(f"{path} was not written ({error.strerror})") from error

    def _restore(self, state: dict[str, Any], resume: Path | None) -> None:
        if state["classes"] != self.classes:
            raise ValueError(f"{resume}: trained on other classes than those of data.train")
        before, now = _flat(state["config"]), _flat(self.config.as_dict())
        self.changes = [
            f"{key} was {before.get(key)!r}" for key in now if now[key] != before.get(key)
        ]
        images = state["images_per_step"]
        if self.position.step > 0 and images != self.order.images_per_step:
            raise ValueError(
                f"{resume}: saved within an epoch of steps of {images} images (all processes "
                f"together); expected as many, got {self.order.images_per_step}"
            )
        try:
            self.learner.load_state_dict(state)
        except RuntimeError as error:
            name = state["config"]["model"]["name"]
            raise ValueError(
                f"{resume}: of {name} at {state['config']['model']['img_size']}, "
                f"which does not fit {self.config.model.name} at {self.config.model.img_size}"
            ) from error

    def _describe(self) -> None:
        config, order = self.config, self.order
        text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
        write_atomically(self.folder / "config.yaml", lambda file: file.write(text.encode()))
        labels = "".join(f"{name}\n" for name in self.classes)
        write_atomically(self.folder / "labels.txt", lambda file: file.write(labels.encode()))
        facts = {
            "version": pvt_ext.__version__,
            "torch": torch.__version__,
            "device": str(self.processes.device),
            "processes": self.processes.world_size,
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "images_per_step": order.images_per_step,
            "steps_per_epoch": order.steps,
            "peak_lr": self.peak,
        }
        self.log.write("start", at=str(self.position), config=config.as_dict(), **facts)
        self.log.say(
            f"pvt: {config.model.name}, {order.num_images:,} images, {len(self.classes)} classes, "
            f"{order.steps} steps of {order.images_per_step} images, learning rate up to "
            f"{self.peak:.3g}, from {self.position}"
        )
        if self.changes:
            self.log.say(f"pvt: other settings than before: {'; '.join(self.changes)}")

    def _finish(self) -> None:
        self._save_weights("final.safetensors")
        title = f"{self.config.model.name}, {self.folder.name}"
        plot_curves(self.log.path, self.folder / "curves.png", title)
        if self.position.best_epoch >= 0:
            self.log.say(
                f"pvt: best top-1 {self.position.best_top1:.2f} % "
                f"after epoch {self.position.best_epoch}"
            )
        self.log.say(f"pvt: to export it: {self.export_command()}")

    def export_command(self) -> str:
        """What to type to make a model file of the result."""
        name, weights = self.config.model.name, "final.safetensors"
        if self.position.best_epoch >= 0:
            weights = "best.safetensors"
        command = ["pvt", "export", name, "--weights", str(self.folder / weights)]
        return shlex.join([*command, "-o", str(self.folder / f"{name}.pt")])

    def last_checkpoint(self) -> str:
        """Where to go on from after an error."""
        path = self.folder / LAST
        if not path.exists():
            return "there is no checkpoint yet"
        return (
            f"the last checkpoint is {path} ({load_state(path)[1]}): --resume auto goes on from it"
        )


def _shares(accuracy: Accuracy) -> dict[str, float]:
    return {"loss": accuracy.loss, "top1": accuracy.top1, "top5": accuracy.top5}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _epoch_line(epoch: int, epochs: int, numbers: dict[str, float]) -> str:
    parts = [f"loss {numbers['train_loss']:.4f}", f"lr {numbers['lr']:.3g}"]
    for name, label in (("val", ""), ("ema", "moving average ")):
        if f"{name}_top1" in numbers:
            parts.append(f"{label}top-1 {numbers[f'{name}_top1']:.2f} %")
    return f"epoch {epoch} (of {epochs}): {', '.join(parts)}, {numbers['seconds']:.0f} s"
