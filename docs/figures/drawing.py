"""What the figures are drawn with: colours, boxes, arrows, and the page around them."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent

INK, MUTED, LINE, PAPER = "#1f2328", "#59636e", "#6e7781", "#ffffff"
GREY = ("#f6f8fa", "#d1d9e0")  # fill, outline
PLAIN = ("#ffffff", "#b6bfc8")
BLUE = ("#e3effd", "#5b9bd9")
ORANGE = ("#ffefdc", "#e0812b", "#a8560d")  # fill, outline, text
VIOLET = ("#f0e8fb", "#9268c9")
TEAL = ("#c9eadf", "#93d0bd", "#74bda6", "#2f8f74")  # face, side, top, outline

BOLD = 'font-weight="600"'
FONT = "-apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"

svg: list[str] = []


def text(
    x: float,
    y: float,
    content: str,
    size: float = 14,
    style: str = "",
    fill: str = INK,
    anchor: str = "middle",
) -> None:
    svg.append(
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" '
        f'text-anchor="{anchor}"{style and " " + style}>{content}</text>'
    )


def box(
    x: float,
    y: float,
    w: float,
    h: float,
    colours: tuple[str, ...],
    lines: list[str],
    radius: float = 8,
) -> None:
    """A rounded box; the first line is in ink, the others are smaller and muted."""
    svg.append(
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" '
        f'fill="{colours[0]}" stroke="{colours[1]}" stroke-width="1.5"/>'
    )
    top = y + h / 2 + 5 - 8.5 * (len(lines) - 1)
    for i, line in enumerate(lines):
        text(x + w / 2, top + 17 * i, line, *((14, "", INK) if i == 0 else (12.5, "", MUTED)))


def path(points: list[tuple[float, float]], arrow: bool = True, radius: float = 9) -> None:
    """A polyline with rounded corners."""
    d = f"M{points[0][0]:g} {points[0][1]:g}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        ends = []
        for other in (before, after):
            dx, dy = other[0] - corner[0], other[1] - corner[1]
            length = (dx * dx + dy * dy) ** 0.5
            ends.append((corner[0] + radius * dx / length, corner[1] + radius * dy / length))
        d += f" L{ends[0][0]:g} {ends[0][1]:g} Q{corner[0]:g} {corner[1]:g}"
        d += f" {ends[1][0]:g} {ends[1][1]:g}"
    d += f" L{points[-1][0]:g} {points[-1][1]:g}"
    svg.append(
        f'<path d="{d}" fill="none" stroke="{LINE}" stroke-width="1.6"'
        + (' marker-end="url(#arrow)"/>' if arrow else "/>")
    )


def plus(x: float, y: float) -> None:
    svg.append(
        f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="{PAPER}" stroke="{LINE}" '
        f'stroke-width="1.6"/><path d="M{x - 5:g} {y:g}h10M{x:g} {y - 5:g}v10" '
        f'stroke="{LINE}" stroke-width="1.6"/>'
    )


def dot(x: float, y: float) -> None:
    svg.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="{LINE}"/>')


def write(name: str, title: str, width: int, height: int) -> None:
    """Write what was drawn to ``docs/<name>``."""
    page = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="{FONT}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path d="M0 0.5L8 4L0 7.5z" fill="{LINE}"/></marker></defs>',
        f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="18" fill="{PAPER}" '
        f'stroke="{GREY[1]}"/>',
        *svg,
        "</svg>",
    ]
    (DOCS / name).write_text("\n".join(page) + "\n")
