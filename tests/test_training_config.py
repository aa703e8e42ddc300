"""Experiments as YAML: what the defaults are, and what a mistake is answered with."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pvt_ext.training.config import (
    Augment,
    Config,
    Mix,
    Model,
    Optimizer,
    Schedule,
    make_config,
    read_config,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALLEST = {"model": {"name": "pvt_small"}, "data": {"train": "photos"}, "run": {"output": "runs"}}


def written(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_published_recipe() -> None:
    config = make_config(SMALLEST)
    assert config.model == Model(name="pvt_small", img_size=224, drop_path=0.1, weights=None)
    assert config.augment == Augment(
        crop="resized", scale=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=0.5, erasing=0.25, repeats=3,
        rand_augment="rand-m9-mstd0.5-inc1",
    )  # fmt: skip
    assert config.mix == Mix(mixup=0.8, cutmix=1.0, prob=1.0, switch_prob=0.5, smoothing=0.1)
    assert config.optimizer == Optimizer(
        lr=5e-4, lr_images=512, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8, clip_grad=None
    )
    assert config.schedule == Schedule(
        epochs=300, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5, per="epoch"
    )
    assert (config.run.batch_size, config.run.precision, config.run.ema) == (128, "fp16", None)


def test_example_of_imagenet_spells_out_the_defaults() -> None:
    path = EXAMPLES / "imagenet_pvt_small.yaml"
    values = yaml.safe_load(path.read_text())
    plain = {
        "model": {"name": "pvt_small"},
        "data": {key: values["data"][key] for key in ("train", "val", "workers")},
        "run": {"output": values["run"]["output"]},
    }
    assert read_config(path) == make_config(plain)
    spelled = {f"{section}.{key}" for section in values for key in values[section]}
    recipe = ("augment", "mix", "optimizer", "schedule")
    expected = {f"{name}.{key}" for name in recipe for key in make_config(plain).as_dict()[name]}
    assert expected - spelled == {"augment.padding"}  # of the other kind of crop


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert isinstance(read_config(path), Config)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    changed = SMALLEST | {"augment": {"crop": "padded"}, "schedule": {"epochs": 3}}
    config = make_config(changed)
    path = written(tmp_path, yaml.safe_dump(config.as_dict()))
    assert read_config(path) == config


def test_changes(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(SMALLEST))
    changes = ["run.batch_size=64", "optimizer.lr=1e-3", "data.val=photos/val", "run.ema=null"]
    config = read_config(path, [*changes, "augment.rand_augment=null", "augment.scale=[0.5, 1]"])
    assert (config.run.batch_size, config.optimizer.lr, config.data.val) == (64, 1e-3, "photos/val")
    assert (config.run.ema, config.augment.rand_augment) == (None, None)
    assert config.augment.scale == (0.5, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.batch=3", "run.batch: no such key; did you mean batch_size?"),
        ("runs.batch_size=3", "runs: no such key; did you mean run?"),
        ("mix.zebra=3", "mix.zebra: no such key; there are mixup, cutmix, prob, switch_prob,"),
        ("model.name=pvt_smal", "model.name: expected one of pvt_small, got 'pvt_smal'"),
        ("schedule.epochs=-1", "schedule.epochs: expected at least 1, got -1"),
        ("schedule.epochs=many", "schedule.epochs: expected a valid integer"),
        ("optimizer.lr=0", "optimizer.lr: expected more than 0, got 0"),
        ("optimizer.lr=.nan", "optimizer.lr: expected a finite number, got nan"),
        ("model.drop_path=1", "model.drop_path: expected less than 1, got 1"),
        ("mix.prob=2", "mix.prob: expected at most 1, got 2"),
        ("run.precision=fp8", "run.precision: expected 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        (
            "augment.rand_augment=rand-m9",
            "augment.rand_augment: expected a policy such as rand-m9-",
        ),
        ("data.preset=papr", "data.preset: expected one of paper, got 'papr'"),
        ("data.train=null", "data.train: expected a valid string, got None"),
        ("data=3", "'data=3': expected a change such as run.batch_size=64"),
        ("run.batch_size", "expected a change such as run.batch_size=64"),
        ("run.output.x=3", "output is no section"),
        ("run.ema=[", "not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: str, message: str) -> None:
    path = written(tmp_path, yaml.safe_dump(SMALLEST))
    with pytest.raises(ValueError, match=r"expected|no such key|not YAML|section") as caught:
        read_config(path, [change])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {name: pvt_tiny}", "data: missing; run: missing"),
        ("just text", "expected sections such as model, data and run"),
        ("model: [", "not YAML"),
        ("run: {seed: 1, seed: 2}", "seed stands twice"),
        ("run: {seed: 1}\nrun: {seed: 2}", "run stands twice"),
        ("model: 3\ndata: {train: a}\nrun: {output: b}", "model: expected"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_package_imports_nothing_of_training() -> None:
    names = "{'pydantic', 'yaml', 'matplotlib', 'pvt_ext.training'}"
    code = f"import pvt_ext, pvt_ext.cli, sys; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("library", ["yaml", "matplotlib"])
def test_a_missing_library_is_named(library: str) -> None:
    hide = f"import sys; sys.modules[{library!r}] = None; from pvt_ext.cli import main; main()"
    arguments = ["train", "x.yaml"]
    done = subprocess.run([sys.executable, "-c", hide, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{library} is not installed; run: pip install" in done.stderr
