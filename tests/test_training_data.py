"""Which images come when, in which process, and that nothing else has an influence on them."""

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import CLASSES, make_images

from pvt_ext.preprocess import Preprocess, load_image
from pvt_ext.training.augment import TrainTransform
from pvt_ext.training.config import Augment
from pvt_ext.training.data import EvalImages, TrainImages, TrainLoader, eval_loader
from pvt_ext.training.order import BatchOrder, epoch_length, epoch_order
from pvt_ext.training.sources import ImageFolder, Shards, decode, open_source, read_classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=7)


# ---- order ----


def test_length_of_an_epoch() -> None:
    assert epoch_length(1_281_167, 3) == 1_281_024  # floor(n / 256) * 256, as published
    assert epoch_length(1_281_167, 1) == 1_281_167
    assert epoch_length(200, 3) == 200


def test_repeats_are_neighbours() -> None:
    order = epoch_order(600, 3, seed=0, epoch=0)
    assert order.shape == (512, 2)
    images, repeats = order.T
    assert len(set(images.tolist())) == 171  # a third of the images, three times
    assert (images[:510].reshape(-1, 3) == images[:510:3, None]).all()
    assert repeats[:6].tolist() == [0, 1, 2, 0, 1, 2]


def test_without_repeats_an_epoch_has_every_image_once() -> None:
    for epoch in range(3):
        order = epoch_order(100, 1, seed=5, epoch=epoch)
        assert sorted(order[:, 0].tolist()) == list(range(100))
        assert not order[:, 1].any()
    orders = {tuple(epoch_order(100, 1, seed, epoch)[:, 0]) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_repeats_are_timms() -> None:
    reason = "timm is not installed: repeated augmentation was NOT compared with timm's"
    theirs = pytest.importorskip("timm.data.distributed_sampler", reason=reason)
    for n, world in [(600, 2), (1000, 4), (256, 1), (3001, 8)]:
        for rank in range(world):
            sampler = theirs.RepeatAugSampler(range(n), world, rank, shuffle=False)
            images = epoch_order(n, 3, seed=0, epoch=0)[:, 0]
            names = {int(image): place for place, image in enumerate(dict.fromkeys(images))}
            mine = [names[int(image)] for image in images[rank::world]]
            assert mine == list(sampler)[: len(mine)]
            assert len(sampler) - len(mine) in (0, 1)


def batches(world_size: int, rank: int, batch_size: int, first_step: int = 0, **options: int):
    order = BatchOrder(
        100, repeats=options.get("repeats", 1), batch_size=batch_size,
        accumulate=options.get("accumulate", 1), rank=rank, world_size=world_size, seed=0,
    )  # fmt: skip
    order.epoch, order.first_step = 2, first_step
    assert len(order) == len(list(order))
    return list(order)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_step_has_the_same_images_however_many_processes_share_it(repeats: int) -> None:
    alone = batches(1, 0, 16, repeats=repeats)
    assert len(alone) == 6  # 4 images do not fill a step
    shared = [batches(4, rank, 2, repeats=repeats, accumulate=2) for rank in range(4)]
    for step, expected in enumerate(alone):
        parts = [key for rank in shared for key in [*rank[2 * step], *rank[2 * step + 1]]]
        assert sorted(parts) == sorted(expected)
    everything = [key for rank in shared for batch in rank for key in batch]
    assert len(everything) == len(set(everything)) == 96


def test_an_order_can_begin_at_any_step() -> None:
    whole = batches(2, 1, 4, accumulate=3)
    assert len(whole) == 12
    for step in range(5):
        assert batches(2, 1, 4, first_step=step, accumulate=3) == whole[3 * step :]


def test_fewer_images_than_a_step() -> None:
    with pytest.raises(ValueError, match="at least the 128 images of one step, got 100; make run"):
        batches(1, 0, 128)


# ---- sources ----


def test_image_folder(folder: Path) -> None:
    source = open_source(str(folder))
    assert isinstance(source, ImageFolder)
    assert source.classes == list(CLASSES)
    assert source.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert source.name(8) == str(folder / "green" / "001.png")
    assert np.array_equal(np.asarray(decode(source, 8)), load_image(source.name(8)))


def test_image_folder_takes_images_only(tmp_path: Path) -> None:
    make_images(tmp_path, per_class=1)
    (tmp_path / "red" / "deep").mkdir()
    (tmp_path / "red" / "000.png").rename(tmp_path / "red" / "deep" / "a.PNG")
    (tmp_path / "red" / "notes.txt").write_text("no image")
    (tmp_path / "red" / "._a.png").write_text("of a Mac")
    (tmp_path / "README").write_text("no folder")
    source = ImageFolder(tmp_path)
    assert [source.name(i)[len(str(tmp_path)) :] for i in range(3)] == [
        "/blue/000.png", "/green/000.png", "/red/deep/a.PNG",
    ]  # fmt: skip


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder for each class, found none"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="expected a folder of class folders, or shards"):
        open_source(str(tmp_path / "missing"))
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"cat: no image \(\.jpg"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="no such class among the model's: cat"):
        open_source(str(tmp_path), ["dog"])


def test_classes_of_another_data_set_keep_their_numbers(folder: Path) -> None:
    source = open_source(str(folder), ["amber", "red", "green", "blue"])
    assert source.labels.tolist() == [3] * 7 + [2] * 7 + [1] * 7


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The images of ``folder`` as the webdataset library writes shards."""
    reason = "webdataset is not installed: reading its shards was NOT tested"
    webdataset = pytest.importorskip("webdataset", reason=reason)
    pattern = str(tmp_path_factory.mktemp("shards") / "x-%03d.tar")
    source = ImageFolder(folder)
    with webdataset.ShardWriter(pattern, maxcount=8, verbose=0) as writer:
        for i, label in enumerate(source.labels.tolist()):
            writer.write({"__key__": f"a/{i:04}", "png": source.read(i), "cls": label})
    return pattern


def test_shards_hold_what_was_written(folder: Path, shards: str) -> None:
    expected = ImageFolder(folder)
    for pattern in (shards.replace("%03d", "{000..002}"), shards.replace("%03d", "*")):
        source = open_source(pattern, CLASSES)
        assert isinstance(source, Shards)
        assert len(source.files) == 3
        assert source.classes == list(CLASSES)
        assert np.array_equal(source.labels, expected.labels)
        assert [source.read(i) for i in range(21)] == [expected.read(i) for i in range(21)]
    assert open_source(pattern).classes == ["0", "1", "2"]


def test_shards_are_read_as_the_library_reads_them(shards: str) -> None:
    import webdataset

    files = shards.replace("%03d", "{000..002}")
    theirs = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False))
    source = open_source(files)
    assert [sample["png"] for sample in theirs] == [source.read(i) for i in range(21)]
    assert [int(sample["cls"]) for sample in theirs] == source.labels.tolist()


def write_tar(path: Path, **members: bytes) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return str(path)


def test_shards_that_are_none(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "x.tar"
    with pytest.raises(ValueError, match="no such file"):
        open_source(str(path))
    path.write_bytes(b"not a tar file" * 100)
    with pytest.raises(ValueError, match=r"x\.tar: cannot be read as a shard"):
        open_source(str(path))
    image = ImageFolder(folder).read(0)
    with pytest.raises(ValueError, match=r"expected an image and a \.cls file for a, got one"):
        open_source(write_tar(path, a__png=image))
    with pytest.raises(ValueError, match="cannot be read as a shard"):
        open_source(write_tar(path, a__png=image, a__cls=b"cat"))
    with pytest.raises(ValueError, match="expected class numbers from 0 to 2, got 3 to 3"):
        open_source(write_tar(path, a__png=image, a__cls=b"3"), CLASSES)
    with pytest.raises(ValueError, match="no sample"):
        open_source(write_tar(path, README=b"nothing else"))


def test_file_of_class_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("blue\nlight green\n\nred\n")
    assert read_classes(path) == ["blue", "light green", "red"]


def test_a_damaged_image_is_named(tmp_path: Path, shards: str) -> None:
    make_images(tmp_path, per_class=2)
    bad = tmp_path / "green" / "001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    source = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match=r"green/001\.png: cannot be read as an image"):
        decode(source, 3)
    archive = write_tar(tmp_path / "x.tar", a__png=b"damaged", a__cls=b"0")
    with pytest.raises(ValueError, match=r"x\.tar at byte 512: cannot be read as an image"):
        decode(open_source(archive), 0)


# ---- batches ----


def loader(folder: Path, workers: int, cache: bool = False) -> TrainLoader:
    transform = TrainTransform(Augment(), 24)
    images = TrainImages(ImageFolder(folder), transform, seed=3, cache=cache)
    order = BatchOrder(21, repeats=3, batch_size=2, accumulate=2, rank=0, world_size=1, seed=3)
    return TrainLoader(images, order, workers, pin_memory=False)


def flat(steps) -> list[torch.Tensor]:
    return [tensor for step in steps for batch in step for tensor in batch]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_depend_on_nothing_but_seed_and_position(folder: Path) -> None:
    plain = loader(folder, workers=0)
    first, second = flat(plain.steps(0, 0)), flat(plain.steps(1, 0))
    assert first[0].shape == (2, 3, 24, 24)
    assert not equal(first, second)
    np.random.seed(9)
    torch.manual_seed(9)
    assert equal(flat(plain.steps(0, 0)), first)  # the global generators play no part
    assert equal(flat(plain.steps(1, 3)), second[3 * 4 :])  # nor what was drawn before
    assert equal(flat(loader(folder, workers=0, cache=True).steps(1, 0)), second)
    parallel = loader(folder, workers=2)
    assert equal(flat(parallel.steps(1, 2)), second[2 * 4 :])
    assert equal(flat(parallel.steps(0, 0)), first)  # the same workers, another epoch


def test_repeats_of_an_image_differ(folder: Path) -> None:
    images = TrainImages(ImageFolder(folder), TrainTransform(Augment(), 24), seed=3, cache=False)
    views = [images[(epoch, 5, repeat)][0] for epoch in (0, 1) for repeat in (0, 1, 2)]
    assert len({view.numpy().tobytes() for view in views}) == 6


def test_a_worker_names_a_damaged_image_in_one_line(tmp_path: Path) -> None:
    make_images(tmp_path, per_class=7)
    (tmp_path / "red" / "003.png").write_bytes(b"damaged")
    for workers in (0, 1):
        steps = itertools.chain(*(loader(tmp_path, workers).steps(e, 0) for e in range(9)))
        with pytest.raises(ValueError, match=r"^\S*red/003\.png: cannot be read") as caught:
            flat(steps)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_sees_every_image_once_as_an_exported_file_does(
    folder: Path, workers: int
) -> None:
    source, preprocess = ImageFolder(folder), Preprocess("paper", 32)
    shares = [EvalImages(source, preprocess, rank, 4) for rank in range(4)]
    assert [len(share) for share in shares] == [6, 5, 5, 5]
    seen = [x for share in shares for x, _ in eval_loader(share, 4, workers, False)]
    seen = torch.cat(seen)
    expected = [
        preprocess(load_image(source.name(i))) for rank in range(4) for i in range(rank, 21, 4)
    ]
    assert torch.equal(seen, torch.stack(expected))


def test_images_of_any_mode_and_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i, (mode, size) in enumerate([("L", (50, 20)), ("RGBA", (9, 70)), ("P", (1, 1))]):
        Image.new(mode, size).save(tmp_path / "a" / f"{i}.png")
    for cache in (False, True):
        images = TrainImages(ImageFolder(tmp_path), TrainTransform(Augment(), 32), 0, cache)
        assert all(images[(0, i, 0)][0].shape == (3, 32, 32) for i in range(3))
