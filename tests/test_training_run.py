"""Runs of a small model from beginning to end: options, resuming, and what ends a run."""

import errno
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import mini
from PIL import Image
from torch import nn
from training import CLASSES, make_images, records, small_models, small_values
from training import write_config as write
from typer.testing import CliRunner

from pvt_ext.checkpoint import recorded_metadata
from pvt_ext.cli import app, main
from pvt_ext.export import load_torchscript
from pvt_ext.model import create_model
from pvt_ext.training import learner as learner_module
from pvt_ext.training import state
from pvt_ext.training.config import Config, make_config
from pvt_ext.training.data import EvalImages, eval_loader
from pvt_ext.training.evaluate import evaluate
from pvt_ext.training.learner import Learner, autocast
from pvt_ext.training.log import read_log
from pvt_ext.training.loop import train
from pvt_ext.training.models import make_model, open_candidate, open_labelled
from pvt_ext.training.processes import Processes, TrainingError, start_processes
from pvt_ext.training.randomness import Stream
from pvt_ext.training.sources import open_source
from pvt_ext.training.state import Position, load_state, write_atomically
from pvt_ext.weights import load_weights, save_weights

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _small_models() -> Iterator[None]:
    with small_models():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder / "train", per_class=11)  # 33 images: 4 steps of 8
    make_images(folder / "val", per_class=5, seed=1)
    return folder


def config(images: Path, output: Path, **changes: Any) -> Config:
    return make_config(small_values(images, **{"run__output": str(output), **changes}))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["model"])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with everything on."""
    output = tmp_path_factory.mktemp("finished")
    with small_models():
        train(config(images, output, run__ema=0.9, optimizer__clip_grad=1.0), ALONE)
    return output


# ---- what a run leaves ----


def test_log(finished: Path) -> None:
    steps, epochs = records(finished, "step"), records(finished, "epoch")
    assert [(r["epoch"], r["step"]) for r in steps] == [(e, s) for e in (0, 1) for s in range(4)]
    assert [r["lr"] for r in steps] == [1e-6] * 8  # warm-up: epochs 0 and 1 alike
    for epoch, record in enumerate(epochs):
        losses = [r["loss"] for r in steps if r["epoch"] == epoch]
        assert record["train_loss"] == pytest.approx(sum(losses) / 4)
        assert {"val_loss", "val_top1", "val_top5", "ema_loss", "ema_top1"} <= record.keys()
        assert record["val_top5"] == 100  # of three classes
    (start,) = records(finished, "start")
    assert start["config"]["run"]["ema"] == 0.9
    assert start["images_per_step"] == 8
    assert all(
        r["images_per_s"] > 0 for r in read_log(finished / "log.jsonl") if r["kind"] == "step"
    )


def test_files(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "best.safetensors", "config.yaml", "curves.png", "final.safetensors", "labels.txt",
        "last.pth", "log.jsonl",
    ]  # fmt: skip
    with Image.open(finished / "curves.png") as picture:
        assert picture.size == (1560, 480)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert (finished / "labels.txt").read_text().split() == list(CLASSES)


def test_checkpoint_loads_safely_and_holds_the_whole_state(finished: Path) -> None:
    checkpoint = torch.load(finished / "last.pth", weights_only=True)
    assert {
        "model",
        "optimizer",
        "scaler",
        "ema",
        "position",
        "config",
        "classes",
    } <= checkpoint.keys()
    assert load_state(finished / "last.pth")[1].epoch == 2
    load_weights(create_model("mini", num_classes=3, img_size=32), finished / "last.pth")


def test_weights_say_what_they_are(finished: Path) -> None:
    facts = recorded_metadata(finished / "best.safetensors")
    assert facts["variant"] == "mini"
    assert facts["img_size"] == "32x32"
    assert facts["preset"] == "hf"
    assert json.loads(facts["labels"]) == list(CLASSES)


def test_weights_are_the_moving_average(finished: Path) -> None:
    model = create_model("mini", num_classes=3, img_size=32)
    load_weights(model, finished / "final.safetensors")
    checkpoint, _ = load_state(finished / "last.pth")
    averaged = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(checkpoint["ema"][name], averaged[name]) for name in averaged)
    assert not same(dict(checkpoint["model"]), model.state_dict())


def test_printed_export_command_works(images: Path, tmp_path: Path, capsys) -> None:
    train(config(images, tmp_path, schedule__epochs=1), ALONE)
    line = capsys.readouterr().err.splitlines()[-1]
    command = shlex.split(line.removeprefix("pvt: to export it: "))
    assert command[:2] == ["pvt", "export"]
    main_without_exit(*command[1:])
    exported, facts = load_torchscript(tmp_path / "mini.pt")
    assert facts["labels"] == list(CLASSES)
    assert (facts["preprocess"]["preset"], facts["img_size"]) == ("hf", [32, 32])
    model = create_model("mini", num_classes=3, img_size=32).eval()
    load_weights(model, tmp_path / "best.safetensors")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)


def test_it_learns(images: Path, tmp_path: Path) -> None:
    gentle = {"augment__rand_augment": None, "mix__mixup": 0, "mix__cutmix": 0}
    options = {"schedule__epochs": 8, "schedule__warmup_lr": 1e-3, **gentle}
    position = train(config(images, tmp_path, **options), ALONE)
    assert position.best_top1 > 90
    assert open_candidate(str(tmp_path / "best.safetensors")).classes == list(CLASSES)


# ---- options ----


def steps_of(images: Path, output: Path, **changes: Any) -> list[dict[str, Any]]:
    train(config(images, output, **changes), ALONE)
    return records(output, "step")


PLAIN = {
    "mix__mixup": 0,
    "mix__cutmix": 0,
    "model__drop_path": 0,
    "schedule__epochs": 1,
    "schedule__warmup_lr": 1e-3,
    "data__val": None,
}


def test_accumulated_batches_make_the_step_of_a_large_batch(images: Path, tmp_path: Path) -> None:
    options = {**PLAIN, "run__batch_size": 8}
    expected = steps_of(images, tmp_path / "a", **options)
    for count, size in ((2, 4), (4, 2)):
        output = tmp_path / str(count)
        options = {**PLAIN, "run__batch_size": size, "run__accumulate": count}
        for a, b in zip(steps_of(images, output, **options), expected, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_each_batch_is_mixed_by_a_draw_of_its_own(images, tmp_path, monkeypatch) -> None:
    drawn: list[tuple[object, ...]] = []
    original = learner_module.generator

    def note(*key: Any) -> np.random.Generator:
        drawn.append(key)
        return original(*key)

    monkeypatch.setattr(learner_module, "generator", note)
    options = {"run__batch_size": 4, "run__accumulate": 2, "run__seed": 7, "data__val": None}
    train(config(images, tmp_path, **options), ALONE)
    places = [(epoch, batch) for epoch in (0, 1) for batch in range(8)]
    assert drawn == [(7, Stream.MIX, epoch, batch, 0) for epoch, batch in places]


@pytest.mark.parametrize("name", ["mini", "mini_v2", "mini_v2_li"])
def test_gradient_checkpointing_changes_nothing(images: Path, tmp_path: Path, name: str) -> None:
    options = {"model__name": name, "model__drop_path": 0.3, "schedule__epochs": 1}
    plain = steps_of(images, tmp_path / "a", **options)
    saved = steps_of(images, tmp_path / "b", model__grad_checkpointing=True, **options)
    assert [step["loss"] for step in saved] == pytest.approx([step["loss"] for step in plain])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast(images: Path, tmp_path: Path, precision: str) -> None:
    plain = steps_of(images, tmp_path / "a", **PLAIN)
    coarse = steps_of(images, tmp_path / "b", run__precision=precision, **PLAIN)
    losses = [step["loss"] for step in coarse]
    assert losses == pytest.approx([step["loss"] for step in plain], rel=0.05)
    assert losses != [step["loss"] for step in plain]
    assert coarse[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=0.05)  # unscaled
    assert all(
        tensor.dtype == torch.float32 for tensor in weights(tmp_path / "b/last.pth").values()
    )


@pytest.mark.slow
def test_compile(images: Path, tmp_path: Path) -> None:
    options = {**PLAIN, "model__name": "one_stage"}
    plain = steps_of(images, tmp_path / "a", **options)
    compiled = steps_of(images, tmp_path / "b", run__compile=True, **options)
    losses = [step["loss"] for step in compiled]
    assert losses == pytest.approx([step["loss"] for step in plain], rel=1e-4)
    assert weights(tmp_path / "b/last.pth").keys() == weights(tmp_path / "a/last.pth").keys()


def test_clipping(images: Path, tmp_path: Path) -> None:
    learner = Learner(mini(num_classes=3, img_size=32), config(images, tmp_path, **PLAIN), ALONE)
    batch = (torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    free = learner.step([batch], 0.0, 0, 0)  # a rate of 0: the weights stay
    norm = torch.nn.utils.get_total_norm([p.grad for p in learner.model.parameters()])
    assert free.grad_norm == pytest.approx(norm.item())
    limited = config(images, tmp_path, **PLAIN, optimizer__clip_grad=free.grad_norm / 4)
    learner = Learner(mini(num_classes=3, img_size=32), limited, ALONE)
    assert learner.step([batch], 0.0, 0, 0).grad_norm == pytest.approx(free.grad_norm)  # as before
    norm = torch.nn.utils.get_total_norm([p.grad for p in learner.model.parameters()])
    assert norm.item() == pytest.approx(free.grad_norm / 4, rel=1e-3)


def test_moving_average(images: Path, tmp_path: Path) -> None:
    options = config(images, tmp_path, **PLAIN, run__ema=0.75)
    learner = Learner(mini(num_classes=3, img_size=32), options, ALONE)
    batch = (torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    expected: dict[str, torch.Tensor] = {}
    for number in range(3):
        learner.step([batch], 1e-3, 0, number)
        now = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
        expected = {n: expected[n] * 0.75 + now[n] * 0.25 for n in now} if expected else now
    for name, tensor in learner.averaged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_tensorboard_is_named_if_it_is_missing(images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard is not installed; run: pip install"):
        train(config(images, tmp_path, run__tensorboard=True, **PLAIN), ALONE)


def test_tensorboard_gets_the_numbers_of_the_log(images, tmp_path, monkeypatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / "tensorboard"

        def add_scalar(self, *scalar: Any) -> None:
            written.append(scalar)

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    library = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    options = {"run__tensorboard": True, "schedule__epochs": 2, "run__batch_size": 16}
    train(config(images, tmp_path, **options), ALONE)
    losses = [record["loss"] for record in records(tmp_path, "step")]
    assert [s for s in written if s[0] == "step/loss"] == [
        ("step/loss", loss, i) for i, loss in enumerate(losses)
    ]
    top1 = [record["val_top1"] for record in records(tmp_path, "epoch")]
    assert [value for name, value, _ in written if name == "epoch/val_top1"] == top1
    assert written[-1][0] == "closed"


def test_progress_bar(images: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    train(config(images, tmp_path, **PLAIN), ALONE)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "epoch 0 " in shown
    assert "4/4" in shown
    assert f"loss {records(tmp_path, 'step')[-1]['loss']:.4f}" in shown
    assert "epoch 0 (of 1): loss" in shown


def test_a_run_on_shards_is_that_on_folders(images: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as archive:
            source = open_source(str(images / part))
            for i, label in enumerate(source.labels.tolist()):
                for name, data in ((f"{i:03}.png", source.read(i)), (f"{i:03}.cls", b"%d" % label)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    shards = {
        "data__train": str(tmp_path / "train-{0..0}.tar"),
        "data__val": str(tmp_path / "val-*.tar"),
        "data__classes": str(tmp_path / "names.txt"),
    }
    train(config(images, tmp_path / "a"), ALONE)
    train(config(images, tmp_path / "b", **shards), ALONE)
    for kind in ("step", "epoch"):
        assert records(tmp_path / "a", kind) == records(tmp_path / "b", kind)
    assert (tmp_path / "b" / "labels.txt").read_text().split() == list(CLASSES)


def test_evaluation_every_so_many_epochs_and_after_the_last(images: Path, tmp_path: Path) -> None:
    train(config(images, tmp_path, schedule__epochs=5, run__eval_epochs=2), ALONE)
    assert ["val_top1" in r for r in records(tmp_path, "epoch")] == [False, True, False, True, True]


# ---- traps of the originals ----


def test_fine_tuning_trains_in_training_mode(images: Path, tmp_path: Path, monkeypatch) -> None:
    save_weights(create_model("mini", num_classes=7, img_size=64), tmp_path / "w.safetensors")
    modes: list[bool] = []
    loss = Learner._loss

    def note(self: Learner, *args: Any) -> torch.Tensor:
        modes.extend(module.training for module in self.network.modules())
        return loss(self, *args)

    monkeypatch.setattr(Learner, "_loss", note)
    output = tmp_path / "run"
    train(config(images, output, model__weights=str(tmp_path / "w.safetensors")), ALONE)
    assert modes
    assert all(modes)  # in the second epoch too, after an evaluation


def test_fine_tuning_begins_with_the_weights(images: Path, tmp_path: Path) -> None:
    given = create_model("mini", num_classes=7, img_size=32)
    save_weights(given, tmp_path / "w.safetensors")
    options = config(images, tmp_path / "run", model__weights=str(tmp_path / "w.safetensors"))
    model = make_model(options, 3)
    assert model.head.weight.shape == (3, 48)
    kept = {name: t for name, t in model.state_dict().items() if not name.startswith("head")}
    assert same(kept, {name: given.state_dict()[name] for name in kept})


def test_repeated_augmentation_off_and_on(images: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[list[int]] = []
    step = Learner.step

    def note(self: Learner, batches: Any, *args: Any) -> Any:
        seen[-1].extend(hash(x.numpy().tobytes()) for images, _ in batches for x in images)
        return step(self, batches, *args)

    monkeypatch.setattr(Learner, "step", note)
    for repeats in (1, 3):
        seen.append([])
        plain = {"augment__rand_augment": None, "augment__erasing": 0, "augment__flip": 0}
        options = {**PLAIN, **plain, "augment__padding": 0, "augment__repeats": repeats}
        train(config(images, tmp_path / str(repeats), **options), ALONE)
    once, thrice = (len(set(pictures)) for pictures in seen)
    assert (once, thrice) == (32, 11)  # of 32 draws


def test_evaluation_counts_each_image_once(images: Path, tmp_path: Path) -> None:
    model = mini(num_classes=3, img_size=32)
    candidate = open_candidate_of(model, tmp_path)
    source = open_labelled(str(images / "val"), candidate)
    whole = accuracy_of(candidate, [EvalImages(source, candidate.preprocess, 0, 1)])
    assert whole.images == 15
    shares = [EvalImages(source, candidate.preprocess, rank, 4) for rank in range(4)]
    parts = [accuracy_of(candidate, [share]) for share in shares]
    assert [part.images for part in parts] == [4, 4, 4, 3]
    for name in ("loss", "top1", "top5"):
        total = sum(part.images * getattr(part, name) for part in parts)
        assert total / 15 == pytest.approx(getattr(whole, name))


def open_candidate_of(model: nn.Module, folder: Path) -> Any:
    facts = {"variant": "mini", "preset": "hf", "labels": json.dumps(CLASSES)}
    save_weights(model, folder / "m.safetensors", metadata=facts)  # type: ignore[arg-type]
    return open_candidate(str(folder / "m.safetensors"))


def accuracy_of(candidate: Any, shares: list[EvalImages]) -> Any:
    loader = eval_loader(shares[0], 4, 0, False)
    return evaluate(candidate.model, loader, ALONE, autocast(ALONE.device, "fp32"))


# ---- going on ----


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one(images: Path, tmp_path: Path, workers: int) -> None:
    everything = {
        "model__drop_path": 0.3, "run__ema": 0.9, "run__precision": "fp16", "augment__repeats": 3,
        "run__checkpoint_steps": 2, "optimizer__clip_grad": 1.0, "data__workers": workers,
        "schedule__per": "step", "run__batch_size": 4, "run__accumulate": 2,
    }  # fmt: skip
    whole = config(images, tmp_path / "whole", **everything)
    train(whole, ALONE)
    parts = config(images, tmp_path / "parts", **everything)
    for stop in (0, 1, 3, 3):  # steps of each attempt; the log is then ahead of the checkpoint
        stop_after(parts, stop)
    train(parts, ALONE, resume=last(parts))
    for kind in ("step", "epoch"):
        assert records(tmp_path / "parts", kind) == records(tmp_path / "whole", kind)
    expected, _ = load_state(last(whole))
    state, position = load_state(last(parts))
    assert position == Position(2, 0, 0.0, position.best_top1, position.best_epoch)
    assert same(dict(state["model"]), dict(expected["model"]))
    assert state["scaler"] == expected["scaler"]
    assert same(
        {k: torch.as_tensor(v) for k, v in state["ema"].items()},
        {k: torch.as_tensor(v) for k, v in expected["ema"].items()},
    )


def last(config: Config) -> Path | None:
    path = config.run.output / "last.pth"
    return path if path.exists() else None


def stop_after(config: Config, step: int) -> None:
    """Let a run go on until a step of its epoch, then stop it as a crash would."""
    original = Learner.step
    count = 0

    def counted(self: Learner, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count > step:
            raise KeyboardInterrupt
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", counted)
        with pytest.raises(KeyboardInterrupt):
            train(config, ALONE, resume=last(config))


def test_a_run_is_not_overwritten(images: Path, finished: Path, tmp_path: Path, capsys) -> None:
    path = write(tmp_path, data__train=str(images / "train"), run__output=str(finished))
    with pytest.raises(SystemExit):
        main(["train", str(path)])
    message = capsys.readouterr().err
    assert "last.pth exists: go on with --resume auto, or choose another run.output" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "mini_v2"}, "of mini at 32, which does not fit mini_v2 at 32"),
        ({"model__img_size": 64}, "of mini at 32, which does not fit mini at 64"),
        ({"run__ema": None}, "run.ema: expected as in the run that is resumed"),
    ],
)
def test_a_checkpoint_that_does_not_fit(images, finished, tmp_path, changes, message) -> None:
    options = {"run__ema": 0.9, "augment__crop": "resized", **changes}
    with pytest.raises(ValueError, match=message):
        train(config(images, tmp_path, **options), ALONE, resume=finished / "last.pth")


def test_a_checkpoint_of_other_data_or_batches(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    make_images(tmp_path / "train", per_class=9)
    (tmp_path / "train" / "red").rename(tmp_path / "train" / "pink")
    with pytest.raises(ValueError, match="trained on other classes"):
        train(config(tmp_path, tmp_path, data__val=None), ALONE, resume=finished / "last.pth")
    parts = config(images, tmp_path / "parts", run__checkpoint_steps=1)
    stop_after(parts, 2)
    other = config(images, tmp_path / "parts", run__batch_size=4)
    with pytest.raises(ValueError, match=r"within an epoch of steps of 8 images .* got 4"):
        train(other, ALONE, resume=last(parts))
    for wrong in (tmp_path / "none.pth", finished / "labels.txt"):
        with pytest.raises(ValueError, match=wrong.name):
            train(parts, ALONE, resume=wrong)
    torch.save({"model": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="expected a checkpoint of pvt train"):
        train(parts, ALONE, resume=tmp_path / "x.pth")


def test_changed_settings_are_said(images: Path, tmp_path: Path, capsys) -> None:
    train(config(images, tmp_path, schedule__epochs=1), ALONE)
    longer = config(images, tmp_path, schedule__epochs=2)
    train(longer, ALONE, resume=last(longer))
    assert "other settings than before: schedule.epochs was 1" in capsys.readouterr().err
    assert len(records(tmp_path, "epoch")) == 2


# ---- what ends a run ----


def test_a_loss_that_is_no_number(images: Path, tmp_path: Path, monkeypatch) -> None:
    train(config(images, tmp_path, schedule__epochs=1), ALONE)
    kept = weights(tmp_path / "last.pth")
    original = learner_module.F.cross_entropy
    calls = iter(range(100))

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        return original(*args, **options) * (math.nan if next(calls) == 2 else 1)

    monkeypatch.setattr(learner_module.F, "cross_entropy", broken)
    options = config(images, tmp_path, schedule__epochs=2, data__val=None, run__checkpoint_steps=9)
    with pytest.raises(TrainingError) as caught:
        train(options, ALONE, resume=last(options))
    assert str(caught.value) == (
        "the loss is nan in epoch 1, step 2, at learning rate 1e-06; a smaller optimizer.lr, "
        f"optimizer.clip_grad or run.precision fp32 may help; the last checkpoint is "
        f"{tmp_path}/last.pth (epoch 1, step 0): --resume auto goes on from it"
    )
    assert same(weights(tmp_path / "last.pth"), kept)


def test_a_gradient_that_is_infinite_does_not_reach_the_weights(images, tmp_path) -> None:
    learner = Learner(mini(num_classes=3, img_size=32), config(images, tmp_path, **PLAIN), ALONE)
    kept = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.model.head.weight.register_hook(lambda grad: grad * math.inf)
    batch = (torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(TrainingError, match=r"the gradient is (inf|nan) in epoch 3, step 5"):
        learner.step([batch], 1e-3, 3, 5)
    assert same(learner.model.state_dict(), kept)


def test_fp16_skips_a_step_whose_gradient_overflows(images: Path, tmp_path: Path) -> None:
    options = config(images, tmp_path, **PLAIN, run__precision="fp16")
    learner = Learner(mini(num_classes=3, img_size=32), options, ALONE)
    kept = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    hook = learner.model.head.weight.register_hook(lambda grad: grad * math.inf)
    batch = (torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    scale = learner.scaler.get_scale()
    learner.step([batch], 1e-3, 0, 0)
    assert same(learner.model.state_dict(), kept)
    assert learner.scaler.get_scale() == scale / 2
    hook.remove()
    learner.step([batch], 1e-3, 0, 1)
    assert not same(learner.model.state_dict(), kept)


def test_a_damaged_image_ends_a_run_in_one_line(images: Path, tmp_path: Path, capsys) -> None:
    make_images(tmp_path / "train", per_class=11)
    path = write(tmp_path, data__val=None, schedule__epochs=1)
    main_without_exit("train", path)
    (tmp_path / "train" / "red" / "004.png").write_bytes(b"damaged")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["train", str(path), "schedule.epochs=3", "--resume", "auto", "data.workers=1"])
    assert caught.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"pvt: {tmp_path}/train/red/004.png: cannot be read as an image")
    assert message.endswith("last.pth (epoch 1, step 0): --resume auto goes on from it")


def main_without_exit(*args: object) -> None:
    main_result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert main_result.exit_code == 0, main_result.output


class FullDisk:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def test_a_full_disk_leaves_the_last_checkpoint(images: Path, tmp_path: Path, monkeypatch) -> None:
    options = config(images, tmp_path, schedule__epochs=1)
    train(options, ALONE)
    before = (tmp_path / "last.pth").read_bytes()
    opened = Path.open
    room = 40_000

    def limited(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        file = opened(self, mode, *args, **more)
        return FullDisk(file, room) if self.name == ".last.pth.partial" else file

    monkeypatch.setattr(Path, "open", limited)
    longer = config(images, tmp_path, schedule__epochs=2)
    with pytest.raises(TrainingError) as caught:
        train(longer, ALONE, resume=last(longer))
    assert str(caught.value).startswith(
        f"{tmp_path}/last.pth was not written (No space left on device); "
        "what it held before is intact; the last checkpoint is "
    )
    assert (tmp_path / "last.pth").read_bytes() == before
    assert not list(tmp_path.glob(".*"))  # nothing takes up the room that is left
    monkeypatch.undo()
    assert train(longer, ALONE, resume=last(longer)).epoch == 2


def test_a_disk_that_is_really_full(images: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount: a disk that is really full was NOT tested")
    try:
        filled_up(images, tmp_path, disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def filled_up(images: Path, tmp_path: Path, disk: Path) -> None:
    first = config(images, disk / "run", schedule__epochs=1, data__val=None, model__name="mini")
    train(first, ALONE)
    before = (disk / "run" / "last.pth").read_bytes()
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        ballast.write(bytes(2**23))  # as much as there is room for
    longer = config(images, disk / "run", schedule__epochs=2, data__val=None)
    with pytest.raises(TrainingError, match="No space left on device"):
        train(longer, ALONE, resume=last(longer))
    assert (disk / "run" / "last.pth").read_bytes() == before
    (disk / "ballast").unlink()
    assert train(longer, ALONE, resume=last(longer)).epoch == 2


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_file_is_complete_or_what_it_was(tmp_path: Path, stage: str, monkeypatch) -> None:
    path = tmp_path / "x"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if stage != "write":
        monkeypatch.setattr(state.os, stage, fail)
    with pytest.raises(TrainingError, match=r"Input/output error\); what it held before is intact"):
        write_atomically(path, lambda file: (file.write(b"new"), stage == "write" and fail()))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_cut_off_by_a_crash_is_read_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "start"}\n{"kind": "step", "epo')
    assert read_log(tmp_path / "log.jsonl") == [{"kind": "start"}]


# ---- commands ----


def test_eval_agrees_on_all_that_it_accepts(finished: Path, images: Path, tmp_path: Path) -> None:
    model = tmp_path / "mini.pt"
    export = ["export", "mini", "--weights", finished / "final.safetensors", "--num-classes", 3]
    export += ["--labels", finished / "labels.txt", "--img-size", 32, "--preset", "hf", "-o", model]
    main_without_exit(*export)
    answers = []
    for name in (model, finished / "final.safetensors", finished / "last.pth"):
        arguments = ["eval", str(name), str(images / "val"), "--workers", "0", "--format", "json"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        answers.append(json.loads(result.stdout))
    assert [answer["images"] for answer in answers] == [15, 15, 15]
    assert len({answer["top1"] for answer in answers}) == 1
    assert answers[0]["loss"] == pytest.approx(answers[1]["loss"], rel=1e-5)
    assert answers[1]["loss"] == answers[2]["loss"]
    logged = records(finished, "epoch")[-1]
    assert answers[2]["loss"] == pytest.approx(logged["ema_loss"], rel=1e-6)
    text = CliRunner().invoke(app, ["eval", str(model), str(images / "val"), "--workers", "0"])
    assert text.stdout.startswith("15 images: top-1 ")


def test_eval_matches_classes_by_name_or_by_order(finished: Path, tmp_path: Path) -> None:
    candidate = open_candidate(str(finished / "best.safetensors"))
    make_images(tmp_path / "few", per_class=1)
    for name in ("blue", "green"):
        (tmp_path / "few" / name / "000.png").unlink()
        (tmp_path / "few" / name).rmdir()
    assert open_labelled(str(tmp_path / "few"), candidate).labels.tolist() == [2]
    for name in ("n03", "n01", "n02"):
        (tmp_path / "ids" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "ids" / name / "a.png")
    assert open_labelled(str(tmp_path / "ids"), candidate).labels.tolist() == [0, 1, 2]
    (tmp_path / "ids" / "n04").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "ids" / "n04" / "a.png")
    with pytest.raises(ValueError, match="expected the 3 classes of the model, got 4"):
        open_labelled(str(tmp_path / "ids"), candidate)


def test_eval_of_something_else(finished: Path, images: Path, tmp_path: Path, capsys) -> None:
    save_weights(mini(), tmp_path / "plain.safetensors")
    for name, message in [
        (tmp_path / "plain.safetensors", "expected weights that pvt train wrote"),
        ("pvt_smal", "expected a .pt, .safetensors or .pth file, or a name in pvt list"),
        (tmp_path / "missing.pth", "missing.pth"),
    ]:
        with pytest.raises(SystemExit):
            main(["eval", str(name), str(images / "val")])
        assert message in capsys.readouterr().err


def test_help() -> None:
    for command in ("train", "eval"):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
    assert "--resume" in CliRunner().invoke(app, ["train", "--help"]).stdout


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"run\.device: expected a GPU"), start_processes("cuda"):
        pass
