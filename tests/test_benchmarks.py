"""The comparison runs and says what it did. No test looks at how fast anything is."""

import json
import shutil

import numpy as np
import pytest
import torch

from benchmarks import accuracy as accuracy_benchmark
from benchmarks import compare, gpu, gpu_peers, plot
from benchmarks.fma_peak import KINDS, CannotCompileError, FmaPeak
from benchmarks.job import PHOTOS, Job, batches, save_images, save_weights
from benchmarks.peers import PEERS
from benchmarks.report import accuracy, finish, is_right, summarise, table
from benchmarks.turns import workers


def result(median: float, status: str = "ok") -> dict[str, object]:
    return {
        "status": status,
        "reason": "" if status == "ok" else "error 1.0e+00, limit 1e-04",
        "memory": {"before_mb": 100.0, "peak_mb": 150.0},
        **summarise([median] * 4),
        **accuracy(np.eye(2), np.eye(2)),
    }


def row(**peers: dict[str, object]) -> dict[str, object]:
    made = {
        "model": "pvt_tiny",
        "dtype": "fp32",
        "batch": 2,
        "size": [224, 224],
        "gflop": 8.0,
        "peak": {"gflops": 200.0, "instruction": "fma", "reason": ""},
        "disturbed": {"waiting": 0.0, "others": 0.4},
        "peers": peers,
    }
    finish(made)
    return made


def test_summary_of_times():
    numbers = summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    assert numbers["median_ms"] == 3.0
    assert (numbers["low_ms"], numbers["high_ms"], numbers["min_ms"]) == (1.5, 4.5, 1.0)
    assert numbers["spread"] == 0.5
    assert summarise([7.0])["spread"] == 0.0


def test_accuracy_is_relative_and_notices_what_is_not_a_number():
    reference = np.array([[1.0, -4.0, 2.0], [0.0, 1.0, 0.5]])
    logits = reference.copy()
    logits[1, 2] = 1.2
    numbers = accuracy(logits, reference)
    assert numbers["error"] == pytest.approx(0.7 / 4)
    assert numbers["top1_agreement"] == 0.5
    assert is_right(numbers, "int8")
    assert not is_right(numbers, "bf16")
    assert not is_right(accuracy(logits * np.nan, reference), "int8")


def test_ratio_is_to_the_fastest_right_peer():
    made = row(ours=result(10.0), eager=result(20.0), openvino=result(5.0, "wrong"))
    assert made["best_peer"] == "eager"
    ours = made["peers"]["ours"]
    assert ours["ratio"] == 2.0
    assert ours["images_per_s"] == 200.0
    assert ours["share_of_peak"] == pytest.approx(8.0 / 0.010 / 200.0)


def test_ours_in_another_form_is_no_rival():
    made = row(**{"ours": result(4.0), "ours, graph": result(2.0), "eager": result(8.0)})
    assert made["best_peer"] == "eager"
    assert made["peers"]["ours, graph"]["ratio"] == 4.0


def test_table_is_loud_about_what_is_wrong_or_missing():
    missing = {"status": "not available", "reason": "No module named 'openvino'"}
    text = table(row(ours=result(10.0), eager=result(20.0, "wrong"), openvino=missing))
    assert "openvino    !! not available: No module named 'openvino'" in text
    assert "!! WRONG: error 1.0e+00" in text
    assert "best peer" not in text
    assert "400%" in text  # of the peak
    assert "other programs used 0.40 processors" in text
    assert "waiting peers" not in text


def test_sizes():
    assert compare.image_size("224") == (224, 224)
    assert compare.image_size("800x1280") == (800, 1280)
    for text in ("0", "1x2x3", "big"):
        with pytest.raises(ValueError):  # noqa: PT011
            compare.image_size(text)


def test_batches_are_full_and_lose_nothing():
    parts = batches(torch.arange(5), 4)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3], [4, 0, 1, 2]]


@pytest.mark.parametrize("dtype", KINDS)
def test_peak_is_measured_or_absent(dtype):
    try:
        peak = FmaPeak(dtype, threads=1)
    except CannotCompileError as error:
        pytest.skip(f"NOT TESTED: the multiply-add peak: {error}")
    assert (peak.measure(0.01) > 0) == bool(peak.instruction)


def test_job_images(tmp_path):
    save_images((64, 96), tmp_path, None, 5)
    job = Job("pvt_tiny", "fp32", 8, (64, 96), 1, tmp_path)
    images = job.images()
    assert images["test"].shape == (5, 3, 64, 96)
    assert len(images["calibration"]) >= 16
    assert job.input().shape == (8, 3, 64, 96)
    # What int8 is calibrated with is not what it is tested on.
    test, calibration = (images[part].flatten(1) for part in ("test", "calibration"))
    assert torch.cdist(test, calibration).min() > 1


@pytest.mark.slow
def test_accuracy_from_end_to_end(tmp_path, capsys):
    for name in ("airplane", "cat", "horse"):
        (tmp_path / name).mkdir()
        shutil.copy(PHOTOS / f"{name}.jpg", tmp_path / name)
    file = tmp_path / "out.json"
    arguments = [str(tmp_path), "--dtype", "fp32", "int8", "--peers", "ours", "eager"]
    with pytest.raises(SystemExit):
        accuracy_benchmark.main(arguments)
    assert "--calibrate: expected a folder of other images" in capsys.readouterr().err
    calibrate = ["--calibrate", str(tmp_path)]
    accuracy_benchmark.main([*arguments, *calibrate, "--threads", "1", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "pvt_nano fp32, 3 images: float64 names 100.00% of them" in printed
    assert "eager       !! not available: PyTorch alone has no int8 path" in printed

    fp32, int8 = json.loads(file.read_text())["rows"]
    for result in (*fp32["peers"].values(), int8["peers"]["ours"]):
        assert result["top1"] == result["top1_agreement"] == 1
    assert fp32["peers"]["ours"]["error"] < 1e-5 < int8["peers"]["ours"]["error"] < 0.1


@pytest.mark.slow
def test_comparison_from_end_to_end(tmp_path, capsys):
    file = tmp_path / "out.json"
    arguments = "pvt_tiny --dtype fp32 int8 --batch 2 --size 64x96 --seconds 0.1 --threads 1"
    compare.main([*arguments.split(), "--peers", "ours", "eager", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "pvt_tiny fp32 batch 2, 64x96" in printed
    assert "eager       !! not available: PyTorch alone has no int8 path" in printed

    data = json.loads(file.read_text())
    assert data["machine"]["threads"] == 1
    assert [row["dtype"] for row in data["rows"]] == ["fp32", "int8"]
    fp32 = data["rows"][0]
    assert fp32["best_peer"] == "eager"
    for peer in ("ours", "eager"):
        numbers = fp32["peers"][peer]
        assert numbers["status"] == "ok"
        assert numbers["error"] < 1e-5
        assert numbers["top1_agreement"] == 1
        assert len(numbers["times_ms"]) >= 5
        assert numbers["low_ms"] <= numbers["median_ms"] <= numbers["high_ms"]
        assert numbers["memory"]["peak_mb"] >= numbers["memory"]["before_mb"] > 0
        assert numbers["versions"]["torch"] == torch.__version__

    pytest.importorskip("matplotlib")
    plot.plot(data, tmp_path / "picture")
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_peers_that_fail_are_said_to(tmp_path):
    job = Job("pvt_tiny", "fp32", 1, (64, 64), 1, tmp_path)
    save_images(job.size, tmp_path, None, 4)
    with workers(["eager"], job, lambda _: None) as (worker,):  # there are no weights
        assert worker.state["status"] == "failed"
        assert "FileNotFoundError" in worker.state["reason"]
    save_weights(job.model, tmp_path, None)
    with workers(["eager"], job, lambda _: None) as (worker,):
        assert worker.ok
        worker.process.kill()
        assert worker.ask("time", 1) is None
        assert worker.state["status"] == "failed"
        assert worker.state["reason"] == "process ended with code -9"


def test_all_peers_have_a_colour_and_a_name():
    assert list(plot.COLOURS) == list(plot.NAMES)
    assert set(plot.COLOURS) == set(PEERS) | set(gpu_peers.PEERS)


def test_gpu_benchmark_tries_itself_on_a_cpu(tmp_path, capsys):
    """All but CUDA: every operator, every candidate, and what is left out is said."""
    path = tmp_path / "gpu.json"
    options = "--device cpu --size 32 --batch 2 --seconds 0.1 --minutes 0.5"
    gpu.main(["pvt_nano", *options.split(), "--json", str(path), "--plot", str(tmp_path / "gpu")])
    out = capsys.readouterr().out
    assert "max-autotune    !! not measured: no time left to compile" in out
    assert "batch 2: NOT COMPILED, no time left" in out
    assert "ours, graph     !! not available: graphs are CUDA's" in out
    data = json.loads(path.read_text())
    (measured,) = data["rows"]
    assert measured["peers"]["ours"]["status"] == "ok"
    assert measured["best_peer"] in ("eager", "sdpa flash", "sdpa math")
    assert {row["operator"].split()[0] for row in data["operators"]} == {
        "patch_embed",
        "reduce_kv",
        "attention_block_",
        "conv_mlp_block_",
        "head",
    }
    assert all(row["predicted_ms"] > row["floor_ms"] > 0 for row in data["operators"])
    assert (tmp_path / "gpu.svg").exists()
    gpu.main(["pvt_nano", *options.split(), "--minutes", "0"])
    assert "batch 2: NOT MEASURED, no time left" in capsys.readouterr().out
