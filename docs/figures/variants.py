"""Draw docs/variants.svg: what differs between PVT v1, v2 and v2 Linear, part by part.

Usage: python docs/figures/variants.py

Patches and windows are to scale within a row.
"""

from drawing import (
    BLUE,
    BOLD,
    GREY,
    LINE,
    MUTED,
    ORANGE,
    PLAIN,
    TEAL,
    VIOLET,
    box,
    path,
    svg,
    text,
    write,
)

WIDTH, HEIGHT = 1120, 748
LEFT, COLUMN, GAP = 36, 336, 20
ROWS = {"embed": 118, "reduce": 292, "mlp": 482, "head": 620}


def cells(x: float, y: float, count: int, side: float, colour: str, every: int = 1) -> None:
    """A grid of ``count`` x ``count`` cells with a stronger line at every ``every``-th."""
    for i in range(count + 1):
        strong = i % every == 0
        style = f'stroke="{LINE if strong else GREY[1]}" stroke-width="{1.3 if strong else 0.8}"'
        at, end = i * side, count * side
        svg.append(
            f'<path d="M{x:g} {y + at:g}h{end:g}M{x + at:g} {y:g}v{end:g}" fill="none" {style}/>'
        )
    svg.append(
        f'<rect x="{x:g}" y="{y:g}" width="{count * side:g}" height="{count * side:g}" '
        f'fill="{colour}" fill-opacity="0.35"/>'
    )


def window(x: float, y: float, side: float, colours: tuple[str, ...]) -> None:
    svg.append(
        f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{colours[0]}" '
        f'fill-opacity="0.75" stroke="{colours[1]}" stroke-width="2"/>'
    )


def note(x: float, y: float, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        style = (14, BOLD) if i == 0 else (12.5, "", MUTED)
        text(x, y + 18 * i, line, *style, anchor="start")


def draw_embed(x: float, overlap: bool) -> None:
    y, pixel = ROWS["embed"], 9
    cells(x + 20, y + 14, 12, pixel, PLAIN[0], every=4)
    if overlap:  # kernel 7, stride 4: the second and third patch of the second row
        window(x + 20 + 1 * pixel, y + 14 + 1 * pixel, 7 * pixel, ORANGE)
        window(x + 20 + 5 * pixel, y + 14 + 1 * pixel, 7 * pixel, BLUE)
        lines = ["patches overlap", "conv 7×7, stride 4, pad 3", "then 3×3, stride 2, pad 1; LN"]
        lines += ["sides need not divide:", "ceil(H/4) × ceil(W/4) tokens"]
    else:
        window(x + 20, y + 14 + 4 * pixel, 4 * pixel, ORANGE)
        window(x + 20 + 4 * pixel, y + 14 + 4 * pixel, 4 * pixel, BLUE)
        lines = ["patches side by side", "conv 4×4, stride 4", "then 2×2, stride 2; LN"]
        lines += ["the rest is dropped:", "floor(H/4) × floor(W/4) tokens"]
    note(x + 146, y + 36, lines)


def draw_reduce(x: float, linear: bool) -> None:
    y, token = ROWS["reduce"], 7
    cells(x + 20, y + 20, 16, token, TEAL[0], every=16 if linear else 8)
    if linear:
        side = 16 * token / 7
        for i in range(7):
            for j in range(7):
                window(x + 20 + i * side, y + 20 + j * side, side, ("none", TEAL[3]))
        lines = ["7 × 7 keys, always", "average of each cell", "conv 1×1, LN, GELU; kv"]
        lines += ["in stage 4 too", "cost: 49 H W"]
    else:
        window(x + 20, y + 20, 8 * token, ORANGE)
        lines = ["a key per R × R patch", "conv R×R, stride R; LN; kv"]
        lines += ["R = 8, 4, 2, 1 by stage", "cost: (H W)² / R²"]
    note(x + 146, y + 48, lines)


def draw_mlp(x: float, dwconv: bool, relu: bool) -> None:
    y = ROWS["mlp"]
    parts = [("fc1", PLAIN, 44)]
    parts += [("ReLU", VIOLET, 50)] if relu else []
    parts += [("3×3", ORANGE, 42)] if dwconv else []
    parts += [("GELU", BLUE, 54), ("fc2", PLAIN, 44)]
    gap = 18
    start = x + (COLUMN - sum(width for *_, width in parts) - gap * (len(parts) - 1)) / 2
    for i, (name, colours, width) in enumerate(parts):
        box(start, y + 28, width, 36, colours, [name], radius=7)
        if i < len(parts) - 1:
            path([(start + width, y + 46), (start + width + gap - 1, y + 46)])
        start += width + gap
    under = "3×3: depthwise, zeros around the grid" if dwconv else "each token by itself"
    text(x + COLUMN / 2, y + 92, under, 12.5, "", MUTED)


def draw_head(x: float, v2: bool) -> None:
    lines = [
        ("positions", "from the zeros around the maps" if v2 else "a table per stage, resized"),
        ("head sees", "mean of the last map" if v2 else "class token, which joins stage 4"),
        ("norm", "after every stage" if v2 else "before the head; maps have none"),
    ]
    for i, (what, how) in enumerate(lines):
        y = ROWS["head"] + 42 + 24 * i
        text(x + 92, y, what, 13, BOLD, anchor="end")
        text(x + 104, y, how, 13, "", MUTED, "start")


def main() -> None:
    text(LEFT, 50, "What differs between the versions", 22, BOLD, anchor="start")
    columns = [("PVT v1", False, False), ("PVT v2", True, False), ("PVT v2 Linear", True, True)]
    heights = {"embed": 160, "reduce": 176, "mlp": 124, "head": 112}
    names = ["patch embedding", "keys and values", "MLP", "positions and head"]
    for i, (title, v2, linear) in enumerate(columns):
        x = LEFT + i * (COLUMN + GAP)
        text(x + COLUMN / 2, 92, title, 17, BOLD)
        for (part, y), name in zip(ROWS.items(), names, strict=True):
            svg.append(
                f'<rect x="{x:g}" y="{y - 14:g}" width="{COLUMN}" height="{heights[part]}" '
                f'rx="14" fill="{GREY[0]}" fill-opacity="0.6" stroke="{GREY[1]}"/>'
            )
            text(x + 16, y + 8, name, 12.5, "", MUTED, "start")
        draw_embed(x, overlap=v2)
        draw_reduce(x, linear)
        draw_mlp(x, dwconv=v2, relu=linear)
        draw_head(x, v2)
    write("variants.svg", "What differs between PVT v1, v2 and v2 Linear", WIDTH, HEIGHT)


if __name__ == "__main__":
    main()
