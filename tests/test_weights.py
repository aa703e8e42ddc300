"""Loading: everything or nothing, and the download against a real HTTP server on this machine."""

import argparse
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from models import MINI_V2, MINI_V2_LI, lively, mini, published_state
from torch import Tensor

from pvt_ext import weights
from pvt_ext.download import DownloadError, cache_dir, download
from pvt_ext.model import PVT, create_model, list_models
from pvt_ext.weights import library_name, load_official, load_weights, published_name


@pytest.fixture
def source() -> PVT:
    return mini()


@pytest.fixture
def target() -> PVT:
    """A model with other weights than ``source``."""
    torch.manual_seed(1)
    model = mini()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def same(a: PVT, b: PVT) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


# ---- names ----


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("patch_embed1.proj.weight", "stages.0.patch_embed.proj.weight"),
        ("patch_embed4.norm.bias", "stages.3.patch_embed.norm.bias"),
        ("pos_embed2", "stages.1.pos_embed"),
        ("block3.17.attn.sr.weight", "stages.2.blocks.17.attn.sr.weight"),
        ("block4.0.mlp.fc2.bias", "stages.3.blocks.0.mlp.fc2.bias"),
        ("block1.0.mlp.dwconv.dwconv.weight", "stages.0.blocks.0.mlp.dwconv.weight"),
        ("block4.39.norm1.bias", "stages.3.blocks.39.norm1.bias"),
        ("norm1.weight", "stages.0.norm.weight"),
        ("norm4.bias", "stages.3.norm.bias"),
        ("cls_token", "stages.3.cls_token"),
        ("norm.weight", "norm.weight"),
        ("head.bias", "head.bias"),
        ("block5.0.norm1.weight", "block5.0.norm1.weight"),  # no stage 5: left alone
    ],
)
def test_names(published: str, ours: str) -> None:
    assert library_name(published) == ours
    assert library_name(ours) == ours
    assert published_name(ours) == published


@pytest.mark.parametrize(
    ("name", "keys"),
    [("pvt_tiny", 161), ("pvt_small", 301), ("pvt_medium", 517), ("pvt_large", 751),
     ("pvt_huge_v2", 1381), ("pvt_v2_b0", 178), ("pvt_v2_b1", 178), ("pvt_v2_b2", 334),
     ("pvt_v2_b2_li", 346), ("pvt_v2_b3", 574), ("pvt_v2_b4", 834), ("pvt_v2_b5", 1054)],
)  # fmt: skip
def test_names_of_every_variant(name: str, keys: int) -> None:
    with torch.device("meta"):
        ours = list(create_model(name).state_dict())
    published = [published_name(key) for key in ours]
    assert len(set(published)) == keys
    assert not any(key.startswith("stages") for key in published)
    assert [library_name(key) for key in published] == ours


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
        assert same(target, source), name
        assert (report.source, report.tensors) == (str(path), len(ours))
        assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_loads_a_state_dict_and_keeps_the_dtype(source: PVT, target: PVT) -> None:
    target.bfloat16()
    report = load_weights(target, published_state(source))
    assert (report.source, report.sha256, report.resized) == ("state_dict", None, ())
    assert target.norm.weight.dtype == torch.bfloat16
    assert same(target, source.bfloat16())


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
def test_loads_v2_with_published_names(name: str, tmp_path: Path) -> None:
    source = lively(name)
    torch.save(published_state(source), tmp_path / "weights.pth")
    target = create_model(name).eval()
    assert not same(target, source)
    report = load_weights(target, tmp_path / "weights.pth")
    assert same(target, source)
    assert report.resized == ()
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
    assert report.resized == tuple(f"stages.{i}.pos_embed" for i in range(4))
    x = torch.randn(1, 3, 96, 160)
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=1e-5)


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
            {"fc.weight": torch.zeros(1)},
    }  # fmt: skip
    for message, changed in cases.items():
        with pytest.raises(ValueError, match="nothing was loaded: " + message) as caught:
            load_weights(target, changed)
        assert "\n" not in str(caught.value)
        after = target.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_other_classes_get_advice(source: PVT) -> None:
    with pytest.raises(ValueError, match=r"2 of another shape: head.* model\.reset_classifier"):
        load_weights(mini(num_classes=3), published_state(source))


def test_refuses_another_digest(source: PVT, target: PVT, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"expected SHA-256 {'0' * 64}, got {digest}"):
        load_weights(target, path, sha256="0" * 64)
    assert not same(target, source)
    load_weights(target, path, sha256=digest.upper())
    assert same(target, source)


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
        ("pos_embed1", lambda t: t[:, :64].to("meta"), r"stages.0.pos_embed \(on the meta device"),
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
    assert same(target, source)


def test_a_prefix_of_some_names_only_is_an_error(source: PVT, target: PVT) -> None:
    state = {"module." + name: tensor for name, tensor in published_state(source).items()}
    state["head.bias"] = state.pop("module.head.bias")
    with pytest.raises(ValueError, match=r"unexpected: module\."):
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
    assert same(target, source)


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
        "malicious.pth": "not a checkpoint, or damaged",
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


# ---- download ----

BODY = bytes(range(256)) * 9000  # more than two chunks


class Handler(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        type(self).requests.append(self.path)
        body = self.files.get(self.path.removeprefix("/short").removeprefix("/stall"))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/short"):
            body = body[:-100]
        if self.path.startswith("/stall"):
            self.wfile.write(body[:1_500_000])
            self.wfile.flush()
            time.sleep(20)
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PVT_CACHE", str(tmp_path / "cache"))
    Handler.files, Handler.requests = {"/a.pth": BODY}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def cached() -> list[str]:
    return sorted(path.name for path in cache_dir().iterdir())


def test_download_once(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = download(f"{server}/a.pth")
    assert path.read_bytes() == BODY
    assert "a.pth" in capfd.readouterr().err  # the progress bar
    digest = hashlib.sha256(BODY).hexdigest()
    assert (cache_dir() / "a.pth.sha256").read_text() == f"{digest}  a.pth\n"
    assert download(f"{server}/a.pth") == path
    assert download(f"{server}/a.pth", sha256=digest) == path
    assert Handler.requests == ["/a.pth"]
    assert cached() == ["a.pth", "a.pth.sha256"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("/b.pth", r"\(404 Not Found\); fetch it by other means and put it at .*b\.pth$"),
        ("/short/a.pth", rf"\(expected {len(BODY)} bytes, got {len(BODY) - 100}\); fetch it by"),
        ("/stall/a.pth", r"\(.*timed out.*\); fetch it by other means"),
    ],
)
def test_failed_download_leaves_nothing(server: str, where: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        download(server + where, timeout=0.5, progress=False)
    assert cached() == []


def test_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"could not download http://127\.0\.0\.1:1/a\.pth \("):
        download("http://127.0.0.1:1/a.pth", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_digest(server: str) -> None:
    with pytest.raises(
        DownloadError, match=f"not the published file .*expected SHA-256 {'0' * 64}"
    ):
        download(f"{server}/a.pth", sha256="0" * 64, progress=False)
    assert cached() == []


def test_changed_cache(server: str) -> None:
    path = download(f"{server}/a.pth", progress=False)
    path.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=r"a\.pth changed since .*; delete it to download"):
        download(f"{server}/a.pth")
    path.unlink()
    assert download(f"{server}/a.pth", progress=False).read_bytes() == BODY


def test_file_put_by_hand(server: str) -> None:
    cache_dir().mkdir()
    (cache_dir() / "a.pth").write_bytes(b"by hand")
    assert download(f"{server}/a.pth").read_bytes() == b"by hand"
    assert Handler.requests == []
    assert (cache_dir() / "a.pth.sha256").exists()


def test_interrupted_download_leaves_nothing(server: str) -> None:
    # A process that a shell started in the background ignores SIGINT, and so do its children.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from pvt_ext.download import download; download('{server}/stall/a.pth')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(cache_dir().glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(cache_dir().glob("*.part")), "the download did not start"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) != 0
    assert cached() == []


def test_official_weights(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    original = create_model("pvt_tiny")
    torch.save(published_state(original), tmp_path / "pvt_tiny.pth")
    Handler.files["/v2/pvt_tiny.pth"] = (tmp_path / "pvt_tiny.pth").read_bytes()
    monkeypatch.setattr(weights, "URL", server + "/v2/{name}.pth")
    assert same(create_model("pvt_tiny", pretrained=True), original)

    larger = create_model("pvt_tiny", img_size=256)
    report = load_official(larger)
    assert len(report.resized) == 4
    assert report.sha256 is not None
    assert Handler.requests == ["/v2/pvt_tiny.pth"]
    with pytest.raises(DownloadError, match=r"pvt_small\.pth \(404"):
        create_model("pvt_small", pretrained=True)


def test_published_files_are_known() -> None:
    assert set(weights.PUBLISHED) == set(list_models()) - {"pvt_huge_v2"}
    assert weights.URL.format(name="pvt_tiny").startswith(
        "https://github.com/whai362/PVT/releases/"
    )
    with pytest.raises(ValueError, match="no published weights for this model"):
        load_official(mini())
