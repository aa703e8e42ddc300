"""Where images come from: folders of class folders, or tar shards as WebDataset writes them.

Both are lists that any image can be read from at any time, so an order can be exact, a run can be
resumed in the middle of an epoch, and no image is evaluated twice. A shard's headers are read once,
at the beginning; a sample is then read at its place in the file.
"""

import glob
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp", ".gif")


class Source(Protocol):
    """Encoded images with class numbers."""

    labels: np.ndarray  # [N], int64
    classes: list[str]

    def read(self, index: int) -> bytes: ...

    def name(self, index: int) -> str:
        """Where image ``index`` is, for a person."""
        ...


class ImageFolder:
    """``root/<class>/**/<image>``; classes in the order of their names.

    Args:
        root: the folder.
        classes: class names in the order of their numbers, of the training data. None: the folders.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        if not folders:
            raise ValueError(f"{root}: expected a folder for each class, found none")
        self.root = root
        self.classes = list(folders if classes is None else classes)
        unknown = [folder for folder in folders if folder not in self.classes]
        if unknown:
            raise ValueError(f"{root}: no such class among the model's: {', '.join(unknown[:5])}")
        paths: list[bytes] = []
        labels: list[int] = []
        for folder in folders:
            found = _images_in(root / folder)
            if not found:
                raise ValueError(f"{root / folder}: no image ({', '.join(EXTENSIONS)})")
            paths += [os.fsencode(os.path.relpath(path, root)) for path in found]
            labels += [self.classes.index(folder)] * len(found)
        self.paths = np.array(paths)  # one object: workers do not copy it page by page
        self.labels = np.array(labels)

    def read(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(bytes(self.paths[index])))


class Shards:
    """Samples ``<key>.<image extension>`` and ``<key>.cls`` (a class number) in tar files.

    Args:
        pattern: a shell pattern, in which ``{000..146}`` counts.
        classes: class names in the order of their numbers. None: the numbers themselves.
    """

    def __init__(self, pattern: str, classes: Sequence[str] | None = None) -> None:
        self.files = [file for part in _counted(pattern) for file in sorted(glob.glob(part))]
        if not self.files:
            raise ValueError(f"{pattern}: no such file")
        entries: list[tuple[int, int, int, int]] = []  # shard, offset, size, label
        for shard, file in enumerate(self.files):
            entries += [(shard, *sample) for sample in _samples_in(file)]
        if not entries:
            raise ValueError(f"{pattern}: no sample of an image and a .cls file")
        self.places = np.array(entries)[:, :3]
        self.labels = np.array(entries)[:, 3]
        numbers = int(self.labels.max()) + 1
        self.classes = [str(n) for n in range(numbers)] if classes is None else list(classes)
        if int(self.labels.min()) < 0 or numbers > len(self.classes):
            raise ValueError(
                f"{pattern}: expected class numbers from 0 to {len(self.classes) - 1}, "
                f"got {self.labels.min()} to {self.labels.max()}"
            )

    def read(self, index: int) -> bytes:
        shard, offset, size = (int(n) for n in self.places[index])
        with open(self.files[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(self, index: int) -> str:
        shard, offset, _ = self.places[index]
        return f"{self.files[shard]} at byte {offset}"


def open_source(path: str, classes: Sequence[str] | None = None) -> Source:
    """The images at ``path``: a folder, or a pattern of tar files.

    Raises:
        ValueError: there are none, or some are of a class that is not among ``classes``.
    """
    if Path(path).is_dir():
        return ImageFolder(Path(path), classes)
    if path.endswith(".tar"):
        return Shards(path, classes)
    raise ValueError(
        f"{path}: expected a folder of class folders, or shards such as x-{{0..9}}.tar"
    )


def read_classes(path: Path) -> list[str]:
    """Class names, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def decode(source: Source, index: int) -> Image.Image:
    """Image ``index`` as Pillow decodes it, RGB.

    Raises:
        ValueError: it is damaged; the message says where it is.
    """
    try:
        with Image.open(io.BytesIO(source.read(index))) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{source.name(index)}: cannot be read as an image ({reason})") from error


def _images_in(folder: Path) -> list[str]:
    found = []
    for parent, _, files in sorted(os.walk(folder, followlinks=True)):
        found += [
            os.path.join(parent, file)
            for file in sorted(files)
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return found


def _counted(pattern: str) -> list[str]:
    """``a-{08..11}.tar`` as ``a-08.tar`` ... ``a-11.tar``."""
    head, brace, rest = pattern.partition("{")
    bounds, closed, tail = rest.partition("}")
    first, dots, last = bounds.partition("..")
    if not (brace and closed and dots and first.isdigit() and last.isdigit()):
        return [pattern]
    numbers = range(int(first), int(last) + 1)
    return [path for n in numbers for path in _counted(f"{head}{n:0{len(first)}}{tail}")]


def _samples_in(path: str) -> list[tuple[int, int, int]]:
    """Offset, size and label of each sample, in the order of the file."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                stem, _, extension = name.partition(".")
                key = os.path.join(folder, stem)
                if extension.lower() == "cls":
                    labels[key] = int(archive.extractfile(member).read())  # type: ignore[union-attr]
                elif f".{extension.lower()}" in EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a shard ({error})") from error
    alone = images.keys() ^ labels.keys()
    if alone:
        raise ValueError(f"{path}: expected an image and a .cls file for {min(alone)}, got one")
    return [(*place, labels[key]) for key, place in images.items()]
