"""Draw docs/architecture.svg: pvt_small at 224 x 224 above, one of its blocks below.

Usage: python docs/figures/architecture.py      (needs Pillow, for the thumbnail of the photo)

Face and depth of the feature maps are to scale, as are no other lengths.
"""

import base64
import io
from dataclasses import dataclass

from drawing import (
    BLUE,
    BOLD,
    DOCS,
    GREY,
    MONO,
    MUTED,
    ORANGE,
    PLAIN,
    TEAL,
    VIOLET,
    box,
    dot,
    path,
    plus,
    svg,
    text,
    write,
)
from PIL import Image

PHOTO = DOCS.parent / "assets" / "photos" / "coffee.jpg"

WIDTH, HEIGHT = 1120, 862


@dataclass
class Stage:
    """What differs between the four stages of pvt_small at 224 x 224."""

    number: int
    patch: int
    grid: int
    channels: int
    depth: int
    sr_ratio: int
    heads: int

    @property
    def num_tokens(self) -> int:
        return self.grid**2 + (self.number == 4)  # stage 4 adds the cls token

    @property
    def num_keys(self) -> int:
        return (self.grid // self.sr_ratio) ** 2 + (self.number == 4)


STAGES = [
    Stage(1, 4, 56, 64, 3, 8, 1),
    Stage(2, 2, 28, 128, 4, 4, 2),
    Stage(3, 2, 14, 320, 6, 2, 5),
    Stage(4, 2, 7, 512, 3, 1, 8),
]


def feature_map(centre: float, middle: float, stage: Stage) -> float:
    """A slab of grid x grid x channels in oblique projection; returns the y of its top."""
    face, depth = 1.6 * stage.grid, stage.channels / 8
    dx, dy = 0.8 * depth, 0.4 * depth
    x, y = centre - (face + dx) / 2, middle - (face - dy) / 2
    outline = f'stroke="{TEAL[3]}" stroke-width="1.3" stroke-linejoin="round"'
    svg.append(
        f'<path d="M{x:g} {y:g}h{face:g}l{dx:g} {-dy:g}h{-face:g}z" fill="{TEAL[1]}" {outline}/>'
        f'<path d="M{x + face:g} {y:g}l{dx:g} {-dy:g}v{face:g}l{-dx:g} {dy:g}z" '
        f'fill="{TEAL[2]}" {outline}/>'
        f'<rect x="{x:g}" y="{y:g}" width="{face:g}" height="{face:g}" fill="{TEAL[0]}" {outline}/>'
    )
    return y - dy


def thumbnail(side: int) -> str:
    """The centre crop of the photo as a data URI."""
    with Image.open(PHOTO) as photo:
        edge = min(photo.size)
        left, top = (photo.width - edge) // 2, (photo.height - edge) // 2
        small = photo.crop((left, top, left + edge, top + edge)).resize((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_network() -> None:
    left, width, gap = 176, 172, 34
    embed, position, block, maps = 136, 208, 280, 437  # y of the three boxes; middle of the maps
    text(36, 50, "Pyramid Vision Transformer", 22, BOLD, anchor="start")
    text(36, 74, "pvt_small at 224 × 224: 24.5 M parameters, 3.8 GMACs", 14.5, "", MUTED, "start")

    svg.append(
        f'<clipPath id="round"><rect x="36" y="{embed - 26}" width="100" height="100" rx="10"/>'
        f'</clipPath><image x="36" y="{embed - 26}" width="100" height="100" '
        f'clip-path="url(#round)" href="{thumbnail(200)}"/>'
    )
    text(86, embed + 94, "3 × 224 × 224", 13, "", MUTED)
    for i in range(4):
        svg.append(
            f'<rect x="{left + i * (width + gap)}" y="98" width="{width}" height="274" rx="14" '
            f'fill="{GREY[0]}" stroke="{GREY[1]}" stroke-width="1.5"/>'
        )
    path([(136, embed + 24), (left + 11, embed + 24)])

    for i, stage in enumerate(STAGES):
        x = left + i * (width + gap)
        centre = x + width / 2
        text(centre, 123, f"Stage {stage.number}", 15, BOLD)
        kernel = f"conv {stage.patch}×{stage.patch}, stride {stage.patch}; LN"
        box(x + 12, embed, width - 24, 48, PLAIN, ["patch_embed", kernel])
        grid = f"{stage.grid} × {stage.grid}"
        table = f"cls + {grid}" if stage.number == 4 else grid
        box(x + 12, position, width - 24, 48, PLAIN, ["+ position table", table])
        for shift in (8, 4):  # the stack behind the first block
            svg.append(
                f'<rect x="{x + 12 + shift}" y="{block + shift}" width="{width - 32}" height="70" '
                f'rx="8" fill="{BLUE[0]}" stroke="{BLUE[1]}"/>'
            )
        heads = "1 head" if stage.heads == 1 else f"{stage.heads} heads"
        lines = [
            f"{stage.depth} × block",
            f"R = {stage.sr_ratio}, {heads}",
            f"{stage.num_tokens} queries, {stage.num_keys} keys",
        ]
        box(x + 12, block, width - 32, 70, BLUE, lines)
        path([(centre, embed + 48), (centre, position - 1)])
        path([(centre, position + 48), (centre, block - 1)])
        top = feature_map(centre, maps, stage)
        path([(centre, block + 79), (centre, top - 5)])
        if i < 3:
            turn = x + width + gap / 2
            out, into = (x + width - 12, block + 35), (x + width + gap + 11, embed + 24)
            path([out, (turn, out[1]), (turn, into[1]), into])
        text(centre, 510, f'<tspan font-weight="600">C{i + 2}</tspan>, stride {4 << i}')
        text(centre, 528, f"{stage.channels} × {stage.grid} × {stage.grid}", 13, "", MUTED)

    text(86, maps - 20, "features(x)", 13, f'font-family="{MONO}"')
    for i, line in enumerate(["C2 to C5 for", "dense prediction,", "without cls token"]):
        text(86, maps - 1 + 17 * i, line, 12.5, "", MUTED)

    # The cls token joins stage 4 before the position table and alone goes on to the head.
    side, centre = left + 4 * width + 3 * gap + 26, left + 3.5 * width + 3 * gap
    box(side, 182, 92, 28, VIOLET, ["cls token"], radius=14)
    path([(side, 196), (centre + 3, 196)])
    path([(centre + width / 2 - 12, block + 35), (side - 1, block + 35)])
    box(side, block + 13, 92, 44, PLAIN, ["norm", "cls token only"])
    path([(side + 46, block + 57), (side + 46, block + 79)])
    box(side, block + 80, 92, 44, PLAIN, ["head", "Linear"])
    path([(side + 46, block + 124), (side + 46, block + 146)])
    text(side + 46, block + 164, "1000 logits", 14, BOLD)


def draw_block() -> None:
    top, upper, lower = 562, 652, 746  # y of the panel, of the query lane, of the key lane
    middle, arc = (upper + lower) / 2, 604
    svg.append(
        f'<rect x="36" y="{top}" width="1048" height="264" rx="14" fill="{BLUE[0]}" '
        f'fill-opacity="0.45" stroke="{BLUE[1]}" stroke-width="1.5"/>'
    )
    text(58, top + 30, "One block", 16, BOLD, anchor="start")

    # Residual connections, over the top.
    text(67, middle + 5, "x", 16, 'font-style="italic"')
    path([(78, middle), (115, middle)])
    dot(96, middle)
    path([(96, middle), (96, arc), (746, arc), (746, middle - 12)])

    box(116, middle - 20, 48, 40, PLAIN, ["LN"])
    path([(164, middle), (185, middle)], arrow=False)
    path([(185, middle), (185, upper), (248, upper)])
    path([(185, middle), (185, lower), (214, lower)])
    dot(185, middle)
    box(249, upper - 20, 92, 40, PLAIN, ["q: Linear"])
    path([(341, upper), (493, upper)])
    text(417, upper - 9, "N queries", 13, "", MUTED)

    box(203, lower - 32, 180, 64, ORANGE, [""], radius=10)
    box(215, lower - 21, 88, 42, PLAIN, ["conv R×R", "stride R"])
    path([(303, lower), (322, lower)])
    box(323, lower - 21, 48, 42, PLAIN, ["LN"])
    text(293, lower + 51, "pvt::spatial_reduction", 13.5, f'font-family="{MONO}"', ORANGE[2])
    path([(383, lower), (399, lower)])
    box(400, lower - 20, 76, 40, PLAIN, ["kv: Linear"])
    path([(476, lower), (493, lower)])
    text(438, lower - 30, "N / R² keys", 13, "", MUTED)

    box(494, upper - 32, 152, lower - upper + 64, ORANGE, [""], radius=10)
    power = '<tspan dy="-5" font-size="10">T</tspan><tspan dx="2" dy="5">'
    text(570, middle - 4, f"softmax(q k{power} / √d) v</tspan>", 14)
    text(570, middle + 18, "for every head", 13, "", MUTED)
    text(570, lower + 51, "pvt::sra_attention", 13.5, f'font-family="{MONO}"', ORANGE[2])

    path([(646, middle), (663, middle)])
    box(664, middle - 20, 54, 40, PLAIN, ["proj"])
    path([(718, middle), (734, middle)])
    plus(746, middle)

    path([(757, middle), (799, middle)])
    dot(778, middle)
    path([(778, middle), (778, arc), (1018, arc), (1018, middle - 12)])
    box(800, middle - 20, 48, 40, PLAIN, ["LN"])
    path([(848, middle), (865, middle)])
    box(866, middle - 32, 122, 64, PLAIN, ["MLP", "Linear, GELU,", "Linear"])
    path([(988, middle), (1006, middle)])
    plus(1018, middle)
    path([(1029, middle), (1066, middle)])

    # Notes, to the right below the MLP.
    svg.append(
        f'<rect x="700" y="{lower + 1}" width="16" height="16" rx="4" fill="{ORANGE[0]}" '
        f'stroke="{ORANGE[1]}" stroke-width="1.5"/>'
    )
    notes = [
        "fused operator of libpvt_ops",
        "R = 1 (stage 4): LN feeds kv, nothing is reduced",
        "MLP width: 8C in stages 1 and 2, 4C in 3 and 4",
    ]
    for i, note in enumerate(notes):
        text(700 + 25 * (i == 0), lower + 14 + 21 * i, note, 13, "", MUTED, "start")


def main() -> None:
    draw_network()
    draw_block()
    write("architecture.svg", "Architecture of the Pyramid Vision Transformer", WIDTH, HEIGHT)


if __name__ == "__main__":
    main()
