"""Downloads against a real HTTP server on this machine."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
from foreign_names import hf_state, mmdet_state
from models import mini, published_state, same_weights

from pvt_ext import published, weights
from pvt_ext.download import DownloadError, cache_dir, download
from pvt_ext.formats import to_timm
from pvt_ext.model import create_backbone, create_model
from pvt_ext.variants import list_models
from pvt_ext.weights import load_official, load_published

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


@pytest.fixture
def mirror(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files, as far as ``Handler`` has them, at the test's own server."""
    moved = {
        name: file._replace(url=server + urlsplit(file.url).path)
        for name, file in published.PUBLISHED.items()
    }
    monkeypatch.setattr(weights, "PUBLISHED", moved)


def upload(url: str, state: dict[str, torch.Tensor], directory: Path) -> bytes:
    """Make ``state`` what the server has for the path of ``url``; the file's content."""
    path = directory / ("file" + Path(url).suffix)
    save = safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save
    save(state, path)
    Handler.files[urlsplit(url).path] = path.read_bytes()
    return path.read_bytes()


@pytest.mark.usefixtures("mirror")
def test_official_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    original = create_model("pvt_tiny")
    url = published.PUBLISHED["official/pvt_tiny"].url
    upload(url, published_state(original), tmp_path)
    assert same_weights(create_model("pvt_tiny", pretrained=True), original)

    larger = create_model("pvt_tiny", img_size=256)
    report = load_official(larger)
    assert len(report.adapted) == 4
    assert report.sha256 is not None

    other = create_model("pvt_tiny", pretrained=True, num_classes=7, in_chans=1)
    assert torch.equal(other.norm.weight, original.norm.weight)
    assert other.head.out_features == 7

    backbone = create_backbone("pvt_tiny", pretrained=True, out_indices=(2,))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(backbone(x)[0], original.features(x)[2])
    assert Handler.requests == [urlsplit(url).path]
    with pytest.raises(DownloadError, match=r"pvt_small\.pth \(404"):
        create_model("pvt_small", pretrained=True)


@pytest.mark.usefixtures("mirror")
def test_published_files_of_others(tmp_path: Path) -> None:
    # Two files of one name are two files in the cache.
    original = create_model("pvt_v2_b0")
    for name, state in [
        ("timm/pvt_v2_b0.in1k", to_timm(original.state_dict())),
        ("OpenGVLab/pvt_v2_b0", hf_state(original.state_dict())),
    ]:
        upload(published.PUBLISHED[name].url, state, tmp_path)
        target = create_model("pvt_v2_b0")
        report = load_published(target, name)
        assert same_weights(target, original)
        assert report.format == published.PUBLISHED[name].format
    assert len(Handler.requests) == 2


@pytest.mark.usefixtures("mirror")
def test_the_digits_in_a_name_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mmdet/retinanet_pvtv2-b0_fpn_1x_coco"
    original = create_backbone("pvt_v2_b0")
    state = {f"backbone.{n}": t for n, t in mmdet_state(original.state_dict()).items()}
    content = upload(published.PUBLISHED[name].url, {"state_dict": state}, tmp_path)
    target = create_backbone("pvt_v2_b0")
    with pytest.raises(DownloadError, match=r"not the published file .*SHA-256 13e9aabe, got"):
        load_published(target, name)
    assert cached() == []
    digits = hashlib.sha256(content).hexdigest()[:8]
    moved = weights.PUBLISHED[name]._replace(sha256=digits)
    monkeypatch.setattr(weights, "PUBLISHED", weights.PUBLISHED | {name: moved})
    assert load_published(target, name).format == "mmdet"
    assert same_weights(target, original)


def test_published_files_are_known() -> None:
    files = published.PUBLISHED
    official = {file.variant for name, file in files.items() if name.startswith("official/")}
    assert official == set(list_models()) - {"pvt_huge_v2", *published.PACKAGED}
    assert {file.variant for file in files.values()} <= set(list_models())
    assert len({file.url for file in files.values()}) == len(files) == 11 + 7 + 11 + 9
    assert len({file.file_name for file in files.values()}) == len(files)
    assert all(file.url.startswith("https://") for file in files.values())
    with pytest.raises(
        ValueError, match="no published weights for this model; there are for pvt_t"
    ):
        load_official(mini())
    with pytest.raises(ValueError, match="no published file 'timm/x'"):
        load_published(mini(), "timm/x")
    with pytest.raises(ValueError, match="official/pvt_small is for pvt_small, not for pvt_tiny"):
        load_published(create_model("pvt_tiny"), "official/pvt_small")
