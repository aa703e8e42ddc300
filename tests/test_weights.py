"""Loading: everything or nothing, and what may be adapted or dropped when asked."""

import argparse
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from models import MINI_V2, MINI_V2_LI, lively, mini, published_state, same_weights, scramble
from torch import Tensor

from pvt_ext.model import PVT, create_model
from pvt_ext.weights import LoadReport, load_weights


@pytest.fixture
def source() -> PVT:
    return mini()


@pytest.fixture
def target() -> PVT:
    """A model with other weights than ``source``."""
    return scramble(mini())


# ---- what can be loaded ----


def test_loads_every_kind_of_file(source: PVT, target: PVT, tmp_path: Path) -> None:
    ours, theirs = source.state_dict(), published_state(source)
    options = argparse.Namespace(model="pvt_small", lr=1e-3)
    files = {
        "ours.pth": lambda path: torch.save(ours, path),
        "published.pth": lambda path: torch.save(theirs, path),
        "legacy.pth": lambda path: torch.save(theirs, path, _use_new_zipfile_serialization=False),
        "training.pth": lambda path: torch.save(
            {"model": theirs, "epoch": 3, "optimizer": {"state": {}}, "args": options}, path
        ),
        "wrapped.pth": lambda path: torch.save({"state_dict": ours}, path),
        "ours.safetensors": lambda path: safetensors.torch.save_file(ours, path),
        "published.safetensors": lambda path: safetensors.torch.save_file(theirs, path),
    }
    blank = {name: torch.zeros_like(tensor) for name, tensor in ours.items()}
    for name, write in files.items():
        path = tmp_path / name
        write(path)
        target.load_state_dict(blank)
        report = load_weights(target, path)
        assert same_weights(target, source), name
        assert (report.source, report.loaded) == (str(path), len(ours))
        assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_loads_a_state_dict_and_keeps_the_dtype(source: PVT, target: PVT) -> None:
    target.bfloat16()
    report = load_weights(target, published_state(source))
    assert (report.source, report.sha256, report.adapted) == ("state_dict", None, ())
    assert target.norm.weight.dtype == torch.bfloat16
    assert same_weights(target, source.bfloat16())


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
def test_loads_v2_with_published_names(name: str, tmp_path: Path) -> None:
    source = lively(name)
    torch.save(published_state(source), tmp_path / "weights.pth")
    target = create_model(name).eval()
    assert not same_weights(target, source)
    report = load_weights(target, tmp_path / "weights.pth")
    assert same_weights(target, source)
    assert report.adapted == ()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(target(x), source(x))


def test_refuses_the_other_version(source: PVT, target: PVT) -> None:
    v2, linear = mini(MINI_V2), mini(MINI_V2_LI)
    with pytest.raises(ValueError, match=r"nothing was loaded: \d+ missing: stages.0.pos_embed"):
        load_weights(target, published_state(v2))
    with pytest.raises(ValueError, match=r"missing: stages.0.blocks.0.mlp.dwconv.weight"):
        load_weights(v2, published_state(source))
    with pytest.raises(ValueError, match=r"missing: stages.3.blocks.0.attn.sr.weight"):
        load_weights(linear, published_state(v2))


def test_resizes_position_tables() -> None:
    source, target = mini(img_size=64), mini(img_size=(96, 160))
    report = load_weights(target, published_state(source))
    assert report.adapted == (
        "stages.0.pos_embed: from 16x16 to 24x40",
        "stages.1.pos_embed: from 8x8 to 12x20",
        "stages.2.pos_embed: from 4x4 to 6x10",
        "stages.3.pos_embed: from 2x2 to 3x5",
    )
    x = torch.randn(1, 3, 96, 160)
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=1e-5)


def test_positions_are_not_resized_unless_that_is_permitted() -> None:
    source, target = mini(img_size=64), mini(img_size=96)
    with pytest.raises(ValueError, match=r"4 of another shape: stages\.0\.pos_embed"):
        load_weights(target, published_state(source), adapt=())


# ---- adapting and dropping, when asked ----


def load(model: PVT, source: PVT, **options: object) -> LoadReport:
    return load_weights(model, published_state(source), **options)  # type: ignore[arg-type]


def test_another_number_of_classes(source: PVT) -> None:
    for num_classes in (3, 0):
        target = mini(num_classes=num_classes)
        before = target.get_classifier()
        with pytest.raises(ValueError, match=r"head.* adapt='num_classes' keeps the head that"):
            load(target, source)
        report = load(target, source, adapt="num_classes")
        assert report.adapted == ("head: as it was",)
        assert target.get_classifier() is before
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(target.forward_features(x), source.forward_features(x))


def test_a_fitting_head_is_loaded(source: PVT, target: PVT) -> None:
    assert load(target, source, adapt="num_classes").adapted == ()
    assert same_weights(target, source)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 7])
def test_another_number_of_channels(in_chans: int, source: PVT) -> None:
    target = mini(in_chans=in_chans)
    with pytest.raises(ValueError, match=r"1 of another shape: .* adapt='in_chans' makes other"):
        load(target, source)
    report = load(target, source, adapt=("in_chans", "positions"))
    assert report.adapted == (f"stages.0.patch_embed.proj.weight: from 3 to {in_chans} channels",)
    # What a grey image gives in RGB, it gives in any number of channels, if the kernels of the
    # channels are alike.
    alike = mini()
    with torch.no_grad():
        kernel = alike.stages[0].patch_embed.proj.weight
        kernel.copy_(kernel.mean(dim=1, keepdim=True).expand_as(kernel))
    load(target, alike, adapt="in_chans")
    grey = torch.randn(1, 1, 64, 64)
    expected = alike(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(target(grey.expand(-1, in_chans, -1, -1)), expected)


def test_one_channel_is_the_sum_of_three(source: PVT) -> None:
    target = mini(in_chans=1)
    load(target, source, adapt="in_chans")
    grey = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(target(grey), source(grey.expand(-1, 3, -1, -1)))


def test_dropped_parts_stay_as_they_were(source: PVT, target: PVT) -> None:
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = published_state(source)
    del state["head.bias"]
    report = load_weights(target, state, drop=("head", "stages.0.patch_embed"))
    dropped = [n for n in before if n.startswith(("head.", "stages.0.patch_embed."))]
    assert sorted(report.missing) == sorted(dropped)
    assert sorted(report.unexpected) == sorted({*dropped} - {"head.bias"})
    after, theirs = target.state_dict(), source.state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if name in dropped else theirs[name]), name


@pytest.mark.parametrize("drop", ["haed", ("block4",), "weight", ("head", "stages.9")])
def test_what_is_dropped_has_to_exist(drop: object, source: PVT, target: PVT) -> None:
    with pytest.raises(ValueError, match="drop: expected parts of the model or the file, in the"):
        load(target, source, drop=drop)
    assert same_weights(target, scramble(mini()))


@pytest.mark.parametrize("argument", ["adapt", "drop"])
@pytest.mark.parametrize("value", [None, [3], 7])
def test_names_are_names(argument: str, value: object, source: PVT, target: PVT) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected a str or several, got"):
        load(target, source, **{argument: value})


def test_other_sources_are_refused(source: PVT, target: PVT) -> None:
    with pytest.raises(ValueError, match="source: expected a file or a state_dict, got PVT"):
        load_weights(target, source)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sha256: expected None, as a state_dict has no digest"):
        load(target, source, sha256="0" * 64)
    with pytest.raises(
        ValueError, match="1 entries that are no tensors: net; pass what is under net"
    ):
        load_weights(target, {"net": source.state_dict()})


def test_a_model_that_cannot_be_written_to_is_refused_before(source: PVT) -> None:
    def frozen() -> PVT:
        model = scramble(mini())
        with torch.inference_mode():
            model.reset_classifier(10)
        return model

    def expanded() -> PVT:
        model = scramble(mini())
        model.head.bias = torch.nn.Parameter(torch.zeros(1).expand(10))
        return model

    for make in (frozen, expanded):
        target = make()
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        with pytest.raises(
            ValueError, match=r"model: head\.\w+ (was made in inference|is expanded)"
        ):
            load(target, source)
        after = target.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_python_objects_are_named(source: PVT, target: PVT, tmp_path: Path) -> None:
    torch.save({"model": source.state_dict(), "best": np.float64(3)}, tmp_path / "a.pth")
    message = r"holds Python objects \(numpy.* which could run code and are not loaded; save the s"
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(target, tmp_path / "a.pth")
    assert str(caught.value).isprintable()


def test_what_may_be_adapted_is_checked(source: PVT, target: PVT) -> None:
    message = r"adapt: expected some of positions, in_chans, num_classes, got \('head',\)"
    with pytest.raises(ValueError, match=message):
        load(target, source, adapt=("head",))


# ---- what is refused, leaving the model as it was ----


def altered(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    merged = state | changes
    return {name: tensor for name, tensor in merged.items() if tensor is not None}


def test_refuses_a_partial_load(source: PVT, target: PVT) -> None:
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = published_state(source)
    cases = {
        r"1 missing: stages.0.pos_embed$": altered(state, pos_embed1=None),
        r"1 unexpected: extra$": altered(state, extra=torch.zeros(1)),
        r"1 of another shape: stages.3.cls_token \(expected \[1, 1, 48\], got \[1, 1, 47\]\)$":
            altered(state, cls_token=torch.zeros(1, 1, 47)),
        r"1 of another shape: stages.0.pos_embed \(expected \[1, 256, 16\], got \[1, 7, 16\]\)$":
            altered(state, pos_embed1=torch.zeros(1, 7, 16)),
        r"\d+ missing: (\S+, ){4}\S+ and \d+ more; 1 unexpected: fc.weight$":
            {"fc.weight": torch.zeros(1), "pos_embed4": state["pos_embed4"]},
    }  # fmt: skip
    for message, changed in cases.items():
        with pytest.raises(ValueError, match="nothing was loaded: " + message) as caught:
            load_weights(target, changed)
        assert "\n" not in str(caught.value)
        after = target.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_refuses_another_digest(source: PVT, target: PVT, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"expected SHA-256 {'0' * 64}, got {digest}"):
        load_weights(target, path, sha256="0" * 64)
    assert not same_weights(target, source)
    load_weights(target, path, sha256=digest.upper())
    assert same_weights(target, source)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("norm.weight", lambda t: t.to("meta"), r"norm.weight \(on the meta device\)$"),
        ("norm.weight", lambda t: t.to_sparse(), r"norm.weight \(layout torch.sparse_coo\)$"),
        ("norm.weight", lambda t: torch.nested.nested_tensor([t]), r"norm.weight \(nested\)$"),
        ("norm.weight", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
         r"norm.weight \(dtype torch.quint8\)$"),
        ("norm.weight", lambda t: t + 1j, r"norm.weight \(dtype torch.complex64\)$"),
        ("norm.weight", lambda t: t.int(), r"norm.weight \(dtype torch.int32\)$"),
        ("norm.weight", lambda t: t / 0, r"norm.weight \(NaN or infinite in torch.float32\)$"),
        ("norm.weight", lambda t: t.double() * 1e300, r"norm.weight \(NaN or infinite in torch.f"),
        ("pos_embed1", lambda t: t[:, :64].to("meta"), r"pos_embed1 \(on the meta device"),
        (7, lambda t: torch.zeros(1), "1 names that are no str: 7$"),
        ("stages.3.cls_token", lambda t: torch.zeros(1, 1, 48),
         "1 given under two names: stages.3.cls_token$"),
        ("a\nb", lambda t: torch.zeros(1), r"1 unexpected: 'a\\nb'$"),
    ],
)  # fmt: skip
def test_refuses_what_cannot_be_a_weight(
    name: str, spoil: Callable[[Tensor | None], Tensor], message: str, source: PVT, target: PVT
) -> None:
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state = published_state(source)
    state[name] = spoil(state.get(name))
    with pytest.raises(ValueError, match="nothing was loaded: .*" + message) as caught:
        load_weights(target, state)
    assert "\n" not in str(caught.value)
    after = target.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_refuses_a_model_without_memory(source: PVT) -> None:
    with pytest.raises(ValueError, match=r"model: expected one with memory .* got the meta device"):
        load_weights(mini().to("meta"), published_state(source))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrapped_models(prefix: str, source: PVT, target: PVT) -> None:
    load_weights(target, {prefix + name: t for name, t in published_state(source).items()})
    assert same_weights(target, source)


def test_a_prefix_of_some_names_only_is_an_error(source: PVT, target: PVT) -> None:
    state = {"module." + name: tensor for name, tensor in published_state(source).items()}
    state["head.bias"] = state.pop("module.head.bias")
    message = r"nothing was loaded: 1 not under 'module\.' as the others: head\.bias$"
    with pytest.raises(ValueError, match=message):
        load_weights(target, state)


def test_notices_a_flipped_bit(source: PVT, target: PVT, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = source.state_dict()
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    values = state["head.weight"].numpy().tobytes()
    content[content.index(values) + 100] ^= 1
    path.write_bytes(content)
    torch.load(path)  # torch takes it
    with pytest.raises(
        ValueError, match=r"weights\.pth: damaged \(checksum of weights/data/\d+\)$"
    ):
        load_weights(target, path)


def test_loads_a_file_without_checksums(source: PVT, target: PVT, tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(source.state_dict(), tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    load_weights(target, tmp_path / "weights.pth")
    assert same_weights(target, source)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_refuses_what_is_no_checkpoint(
    source: PVT, target: PVT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.pth").touch()
    Path("text.pth").write_text("<html>404</html>")
    Path("text.safetensors").write_text("<html>404</html>")
    torch.save(source.state_dict(), "good.pth")
    Path("cut.pth").write_bytes(Path("good.pth").read_bytes()[:-1000])
    Path("malicious.pth").write_bytes(pickle.dumps({"x": Malicious()}, protocol=2))
    torch.save([1, 2], "list.pth")
    torch.save({"epoch": 3, "lr": 0.1}, "numbers.pth")
    torch.save({}, "nothing.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save("scripted.pt")
    Path("folder.pth").mkdir()
    messages = {
        "absent.pth": "no such file",
        "folder.pth": "is a folder",
        "empty.pth": "the file is empty",
        "text.pth": "not a checkpoint, or damaged",
        "text.safetensors": "not a checkpoint, or damaged",
        "cut.pth": "not a checkpoint, or damaged",
        "malicious.pth": r"holds Python objects \(posix.mkdir\), which could run code and are not",
        "list.pth": "expected a dict of tensors, got list",
        "numbers.pth": "2 entries that are no tensors: epoch, lr",
        "nothing.pth": "got nothing",
        "scripted.pt": "expected weights, got an exported TorchScript model",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"{name}: .*{message}") as caught:
            load_weights(target, name)
        assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()
