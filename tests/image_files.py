"""Image files of every kind a photo library holds, made by hand: name -> bytes.

Pillow writes the JPEGs; PNGs are put together chunk by chunk, because Pillow cannot write most of
the sixteen-bit, interlaced and transparent kinds that it reads.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG colour type -> samples per pixel
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _packed_rows(samples: np.ndarray, depth: int) -> bytes:
    """``[h, w, channels]`` samples as PNG rows, each after a filter byte 0 (none)."""
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    elif depth == 8:
        packed = rows.astype(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(len(rows), -1), axis=-1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def png(
    samples: np.ndarray, depth: int, color: int, *, extra: bytes = b"", interlaced: bool = False
) -> bytes:
    """A PNG of ``[H, W, channels]`` samples; ``extra`` chunks come before the image data."""
    height, width = samples.shape[:2]
    if interlaced:
        passes = (samples[y::dy, x::dx] for y, x, dy, dx in ADAM7)
        data = b"".join(_packed_rows(part, depth) for part in passes if part.size)
    else:
        data = _packed_rows(samples, depth)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data))
    return PNG_SIGNATURE + body + chunk(b"IEND", b"")


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth shapes with some noise: ``uint8 [height, width, channels]``."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + c) + c) * np.cos(y / (5 - c)) for c in range(channels)]
    values = 128 + 100 * np.stack(waves, axis=-1) + random.normal(0, 12, (height, width, channels))
    return values.clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels, mode=mode).save(file, "JPEG", **options)
    return file.getvalue()


def _with_sampling(data: bytes, luma: int) -> bytes:
    """The same entropy data under another chroma subsampling with as many blocks per MCU."""
    start = data.index(b"\xff\xc0")
    return data[: start + 11] + bytes([luma]) + data[start + 12 :]


def jpeg_files() -> Iterator[tuple[str, bytes]]:
    for height, width in ((64, 64), (37, 53), (1, 1), (8, 1), (1, 17)):
        image = photo(height, width)
        name = f"{width}x{height}"
        yield f"grey_{name}.jpg", jpeg(photo(height, width, 1))
        for sampling in ("4:4:4", "4:2:2", "4:2:0"):
            label = sampling.replace(":", "")
            yield f"{label}_{name}.jpg", jpeg(image, subsampling=sampling, quality=85)
        yield f"progressive_{name}.jpg", jpeg(image, progressive=True, quality=60)
        yield f"low_quality_{name}.jpg", jpeg(image, quality=5)
        yield f"cmyk_{name}.jpg", jpeg(photo(height, width, 4), "CMYK", quality=90)
    image = photo(64, 64)
    yield "rgb.jpg", jpeg(image, keep_rgb=True)
    yield "restart.jpg", jpeg(image, restart_marker_blocks=3)
    yield "440.jpg", _with_sampling(jpeg(image, subsampling="4:2:2"), 0x12)
    yield "411.jpg", _with_sampling(jpeg(image, subsampling="4:2:0"), 0x41)
    cmyk = jpeg(photo(64, 64, 4), "CMYK")
    adobe = cmyk.index(b"Adobe")
    yield "ycck.jpg", cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :]
    yield "cmyk_without_adobe.jpg", cmyk[:adobe] + b"Other" + cmyk[adobe + 5 :]
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated: ignored, as Pillow does by default
    yield "exif_rotated.jpg", jpeg(photo(20, 40), exif=exif)
    yield "photo_480x360.jpg", jpeg(photo(360, 480), quality=92)


def png_files() -> Iterator[tuple[str, bytes]]:
    random = np.random.default_rng(1)
    gamma = chunk(b"gAMA", struct.pack(">I", 100000))
    palette = chunk(b"PLTE", random.integers(0, 256, 768, dtype=np.uint8).tobytes())
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    names = {0: "grey", 2: "rgb", 3: "palette", 4: "grey_alpha", 6: "rgba"}
    for color, channels in CHANNELS.items():
        for depth in depths[color]:
            for height, width in ((19, 23), (1, 1), (3, 2)):
                samples = random.integers(0, 1 << depth, (height, width, channels))
                entries = min(256, 1 << depth)
                extra = palette if entries == 256 else chunk(b"PLTE", palette[8 : 8 + 3 * entries])
                extra = extra if color == 3 else gamma
                for interlaced in (False, True):
                    name = f"{names[color]}{depth}_{width}x{height}{'_interlaced' * interlaced}.png"
                    yield name, png(samples, depth, color, extra=extra, interlaced=interlaced)
    around_clip = np.array([0, 1, 127, 128, 254, 255, 256, 257, 511, 512, 32768, 65535])
    yield "grey16_steps.png", png(around_clip.reshape(1, -1, 1), 16, 0)
    transparent = chunk(b"tRNS", struct.pack(">H", 7))
    yield "grey8_trns.png", png(random.integers(0, 16, (9, 9, 1)), 8, 0, extra=transparent)
    yield "grey16_trns.png", png(random.integers(0, 300, (9, 9, 1)), 16, 0, extra=transparent)
    transparent = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    yield "rgb8_trns.png", png(random.integers(0, 4, (9, 9, 3)), 8, 2, extra=transparent)
    alphas = chunk(b"tRNS", bytes(range(0, 200, 3)))
    yield "palette8_trns.png", png(random.integers(0, 256, (9, 9, 1)), 8, 3, extra=palette + alphas)
    few = chunk(b"PLTE", palette[8 : 8 + 15])
    yield "palette8_short.png", png(random.integers(0, 9, (9, 9, 1)), 8, 3, extra=few)
    yield "suggested_palette.png", png(random.integers(0, 256, (9, 9, 3)), 8, 2, extra=palette)


def image_files() -> dict[str, bytes]:
    """Every kind: JPEG and PNG."""
    return dict(jpeg_files()) | dict(png_files())
