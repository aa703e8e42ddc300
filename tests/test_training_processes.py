"""Runs in processes of their own: several under torchrun, and some that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import command, environment, make_images, records, run, write_config

from pvt_ext.training.randomness import Stream, generator, seed_torch
from pvt_ext.training.state import load_state


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder / "train", per_class=11)
    make_images(folder / "val", per_class=5, seed=1)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_state(folder / "last.pth")[0]["model"])


PLAIN = {"mix__mixup": 0, "mix__cutmix": 0, "model__drop_path": 0, "schedule__warmup_lr": 1e-3}


def test_two_processes_are_one_with_the_same_images_in_a_step(images: Path, tmp_path: Path) -> None:
    config = write_config(images, **PLAIN, augment__repeats=3, run__ema=0.5)
    alone = run("train", config, f"run.output={tmp_path}/1")
    assert alone.returncode == 0, alone.stderr
    changes = [f"run.output={tmp_path}/2", "run.batch_size=2", "run.accumulate=2"]
    both = run("train", config, *changes, processes=2)
    assert both.returncode == 0, both.stderr
    for kind in ("step", "epoch"):
        pairs = zip(records(tmp_path / "1", kind), records(tmp_path / "2", kind), strict=True)
        for one, two in pairs:
            del one["kind"], two["kind"]
            assert two == pytest.approx(one, rel=1e-4)
    expected = weights(tmp_path / "1")
    for name, tensor in weights(tmp_path / "2").items():
        # Where a gradient is zero, as that of the keys' bias, Adam makes steps of rounding errors.
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)
    (start,) = records(tmp_path / "2", "start")
    assert (start["processes"], start["images_per_step"]) == (2, 8)
    assert both.stderr.count("epoch 1 (of 2)") == 1  # one of them speaks

    # Each image is evaluated once, by one of them, and going on adds nothing to a run that ended.
    arguments = ["eval", tmp_path / "2" / "last.pth", images / "val", "--format", "json"]
    shared = run(*arguments, processes=2)
    (answer,) = (json.loads(line) for line in shared.stdout.splitlines())
    assert answer["images"] == 15
    logged = records(tmp_path / "2", "epoch")[-1]
    assert answer["loss"] == pytest.approx(logged["ema_loss"], rel=1e-5)


def test_processes_draw_their_own_mixing_and_drop_path() -> None:
    draws = {generator(0, Stream.MIX, 3, 5, rank).random() for rank in range(8)}
    assert len(draws) == 8
    seeds = set()
    for rank in range(8):
        seed_torch(0, 3, 5, rank)
        seeds.add(torch.rand(()).item())
    assert len(seeds) == 8


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(images: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "train", per_class=11)
    (tmp_path / "train" / "red" / "004.png").write_bytes(b"damaged")
    config = write_config(tmp_path, data__val=None, run__batch_size=4)
    done = run("train", config, processes=2)
    assert done.returncode != 0
    assert "red/004.png: cannot be read as an image" in done.stderr


EVERYTHING = {
    "model__drop_path": 0.3,
    "schedule__epochs": 4,
    "schedule__per": "step",
    "run__ema": 0.9,
    "run__checkpoint_steps": 1,
    "augment__repeats": 3,
}


def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(images, tmp_path) -> None:
    config = write_config(images, **EVERYTHING)
    program = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(program), str(config), str(tmp_path), "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2, "the run was hardly killed: nothing was tested"
    for kind in ("step", "epoch"):
        assert records(tmp_path / "killed", kind) == records(tmp_path / "whole", kind)
    ours, expected = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_two_processes_killed_and_resumed(images: Path, tmp_path: Path) -> None:
    config = write_config(images, **EVERYTHING, run__batch_size=4, data__workers=1)
    whole = run("train", config, f"run.output={tmp_path}/whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    output = tmp_path / "killed"
    arguments = ["train", config, f"run.output={output}", "--resume", "auto"]
    with subprocess.Popen(
        command(*arguments, processes=2), env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as both:  # fmt: skip
        while both.poll() is None and not step_is_logged(output, epoch=1):
            time.sleep(0.01)
        os.killpg(both.pid, signal.SIGKILL)
    assert both.returncode == -signal.SIGKILL
    assert len(records(output, "epoch")) < 4
    rest = run(*arguments, processes=2)
    assert rest.returncode == 0, rest.stderr
    for kind in ("step", "epoch"):
        assert records(output, kind) == records(tmp_path / "whole", kind)


def step_is_logged(output: Path, epoch: int) -> bool:
    log = output / "log.jsonl"
    return log.exists() and f'"kind": "step", "epoch": {epoch}' in log.read_text()
