"""A small ResNet, trained as ``pvt train`` trains pvt_nano: the yardstick of that model.

    python -m benchmarks.cifar10_resnet examples/cifar10_pvt_nano.yaml data.train=... data.val=... \
        [--json FILE]

As many multiply-accumulates per image, and everything else of the experiment the same: images in
the same order with the same augmentation, AdamW with the same rates, epochs, moving average. Only
the section ``model`` plays no part.

Source: He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2: a 3x3 stem and
basic blocks, here of four widths instead of three.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import write_json
from pvt_ext.preprocess import Preprocess
from pvt_ext.training.augment import TrainTransform
from pvt_ext.training.config import Config, read_config
from pvt_ext.training.data import EvalImages, TrainImages, TrainLoader, eval_loader
from pvt_ext.training.evaluate import evaluate
from pvt_ext.training.learner import Learner
from pvt_ext.training.order import BatchOrder
from pvt_ext.training.processes import Processes
from pvt_ext.training.recipe import learning_rate, peak_rate
from pvt_ext.training.sources import open_source

WIDTHS = (24, 48, 96, 192)  # 36 million multiply-accumulates at 32x32, as pvt_nano has


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where shapes change."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chans != out_chans:
            convolution = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """One block per width; besides, what a :class:`Learner` asks of a model."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        stem = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        chans = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.blocks = nn.Sequential(
            *(BasicBlock(*pair, stride=1 if i == 0 else 2) for i, pair in enumerate(chans))
        )
        self.head = nn.Linear(WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # the faster one on a CPU

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    def no_weight_decay(self) -> set[str]:
        return set()

    def set_grad_checkpointing(self, enable: bool) -> None:
        assert not enable


def train(config: Config) -> dict[str, Any]:
    """Train; returns what is to be reported."""
    run, data = config.run, config.data
    source = open_source(data.train)
    processes = Processes(0, 1, torch.device("cpu"))
    order = BatchOrder(
        len(source.labels),
        repeats=config.augment.repeats,
        batch_size=run.batch_size,
        accumulate=run.accumulate,
        rank=0,
        world_size=1,
        seed=run.seed,
    )
    transform = TrainTransform(config.augment, config.model.img_size)
    images = TrainImages(source, transform, run.seed, data.cache)
    loader = TrainLoader(images, order, data.workers, pin_memory=False)
    assert data.val is not None
    view = Preprocess(data.preset, config.model.img_size)
    val = EvalImages(open_source(data.val, source.classes), view, 0, 1)
    val_loader = eval_loader(val, run.batch_size, data.workers, pin_memory=False)

    torch.manual_seed(run.seed)
    model = ResNet(len(source.classes))
    size = config.model.img_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    learner = Learner(model, config, processes)  # type: ignore[arg-type]
    peak = peak_rate(config.optimizer, order.images_per_step)
    report: dict[str, Any] = {
        "case": f"ResNet {WIDTHS}, CIFAR-10",
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2,
        "epochs": [],
    }
    for epoch in range(config.schedule.epochs):
        start, loss = time.perf_counter(), 0.0
        model.train()
        for step, batches in enumerate(loader.steps(epoch, 0)):
            rate = learning_rate(config.schedule, peak, epoch, step / order.steps)
            loss += learner.step(batches, rate, epoch, step).loss / order.steps
        numbers: dict[str, Any] = {"seconds": time.perf_counter() - start, "train_loss": loss}
        if (epoch + 1) % run.eval_epochs == 0 or epoch + 1 == config.schedule.epochs:
            candidates = {"val": model, "ema": learner.averaged}
            numbers |= {
                f"{name}_top1": evaluate(candidate, val_loader, processes, learner.autocast()).top1
                for name, candidate in candidates.items()
            }
        report["epochs"].append(numbers)
        print(f"epoch {epoch}: {numbers}", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = train(read_config(args.config, args.changes))
    print(f"{report['parameters']:,} parameters, {report['macs'] / 1e6:.1f} MMAC per image")
    write_json(args.json, [report])


if __name__ == "__main__":
    main()
