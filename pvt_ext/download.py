"""Fetch a file once, keep it in a cache, notice when it changes.

The publisher of the PVT weights gives no digests. So the digest of the first download is written
beside the file (``<name>.sha256``, the format of ``sha256sum``) and checked at every later use.
"""

import hashlib
import os
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

CHUNK_BYTES = 1 << 20


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not what was published."""


def cache_dir() -> Path:
    """``$PVT_CACHE``, or ``pvt_ext`` in torch's cache (``$TORCH_HOME/hub``, see torch.hub)."""
    return Path(os.environ.get("PVT_CACHE") or Path(torch.hub.get_dir()) / "pvt_ext")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Raise ValueError, with what ``path`` is instead, unless it is a regular file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"{path}: {what if path.exists() else 'no such file'}")


def damaged_entry(path: Path) -> str | None:
    """Name of an entry of a zip archive that fails its checksum; None if there is none.

    ``torch.load`` and ``torch.jit.load`` check none, so a flipped bit would become a weight. Reads
    about 2 GB/s. torch can be told to write no checksums; they are 0 then and nothing is checked.

    Raises:
        zipfile.BadZipFile: no zip archive, or one whose list of entries is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.CRC == 0:
                continue
            try:
                with archive.open(entry) as stream:
                    while stream.read(CHUNK_BYTES):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError):
                return entry.filename
    return None


def download(
    url: str,
    *,
    name: str | None = None,
    sha256: str | None = None,
    directory: Path | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """The local copy of ``url``, fetched if it is not in the cache yet.

    Args:
        url: http or https address.
        name: of the local file; None: the last part of ``url``.
        sha256: expected digest, or its first digits. None: the one recorded at the first
            download, if any.
        directory: where to keep the file; None means :func:`cache_dir`.
        timeout: seconds without an answer or without data after which to give up.
        progress: show a progress bar on stderr.

    Raises:
        DownloadError: unreachable, incomplete, or another digest than expected. The cache is then
            as it was before: a half file is never left under the final name.
    """
    path = (directory or cache_dir()) / (name or Path(urlsplit(url).path).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            _fetch(url, partial, timeout, progress)
            if sha256 is not None:
                _check_digest(partial, sha256, f"{url} is not the published file")
            os.replace(partial, path)
        except (OSError, HTTPException) as error:
            reason = str(error.reason if isinstance(error, URLError) else error)
            if isinstance(error, HTTPError):
                reason = f"{error.code} {reason}"
            raise DownloadError(
                f"could not download {url} ({reason}); fetch it by other means and put it at {path}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    _check_recorded(path, sha256)
    return path


def _fetch(url: str, path: Path, timeout: float, progress: bool) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "pvt_ext"})
    with urllib.request.urlopen(request, timeout=timeout) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        expected = int(length) if length else None
        received = 0
        with tqdm(
            total=expected,
            desc=url.rsplit("/", 1)[-1],
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        # A connection that closes early looks like the end of the body to `read`.
        if expected is not None and received != expected:
            raise OSError(f"expected {expected} bytes, got {received}")


def _check_recorded(path: Path, sha256: str | None) -> None:
    """Check ``path`` against ``sha256``, else against the digest recorded beside it."""
    record = path.with_name(path.name + ".sha256")
    if record.is_file() and len(sha256 or "") < 64:
        sha256 = record.read_text().partition(" ")[0]
    advice = f"{path} changed since it was downloaded; delete it to download it again"
    digest = file_sha256(path) if sha256 is None else _check_digest(path, sha256, advice)
    if not record.is_file():
        record.write_text(f"{digest}  {path.name}\n")


def _check_digest(path: Path, sha256: str, complaint: str) -> str:
    digest = file_sha256(path)
    if not digest.startswith(sha256.lower()):
        raise DownloadError(f"{complaint} (expected SHA-256 {sha256}, got {digest})")
    return digest
