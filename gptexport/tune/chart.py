"""Error against speed, a dot for each candidate: one SVG that opens anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 40, 200, 64, 46
FEW, TALLER = 9, 16  # how many dots the height is for, and how much each further one adds
LABEL, LINE = 150, 13  # how long and how high one is
SMALLEST = 1e-14  # errors below this are drawn there: it is rounding of the measurement
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" class="gptexport-tune"'
CHART = "chart of gptexport tune"
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-size: 15px; font-weight: 600 }
.note { fill: #555 } .off { fill: #9aa7b5 } .on { fill: #2563a8 } .kept { stroke: #222; stroke-width: 2 }
.line { stroke: #2563a8; fill: none } .bound { stroke: #222; stroke-dasharray: 3 3 } .paper { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .note { fill: #bbb } .paper { fill: #16181c } .bound, .kept { stroke: #eee }
}
"""


@dataclass(frozen=True)
class Dot:
    """One that was measured."""

    name: str
    error: float
    speed: float  # beside what all are compared with
    on_frontier: bool
    kept: bool = False


def frontier_chart(
    title: str, dots: Sequence[Dot], *, note: str, error: str, bound: tuple[str, float] | None = None
) -> str:
    """An SVG document: the error to the right, on a logarithmic scale, and how fast upwards.

    Args:
        note: a line below the title.
        error: what the errors are.
        bound: the name of the largest error that is allowed, and the error.
    """
    errors = [max(dot.error, SMALLEST) if math.isfinite(dot.error) else 1.0 for dot in dots]
    ends = [*errors, *([bound[1]] if bound is not None else [])]
    low, high = math.log10(min(ends)) - 0.5, math.log10(max(ends)) + 0.5
    fastest = 1.1 * max(dot.speed for dot in dots)
    height = HEIGHT + TALLER * max(0, len(dots) - FEW)
    places = [
        (
            LEFT + (math.log10(error) - low) / (high - low) * (WIDTH - LEFT - RIGHT),
            height - BOTTOM - dot.speed / fastest * (height - TOP - BOTTOM),
        )
        for dot, error in zip(dots, errors, strict=True)
    ]
    drawn = []
    for dot, (x, y), label in zip(dots, places, _labels(places), strict=True):
        kind = f"{'on' if dot.on_frontier else 'off'}{' kept' if dot.kept else ''}"
        drawn.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        drawn.append(f'<text x="{x + 9:.1f}" y="{label + 4:.1f}">{escape(dot.name)} {dot.speed:.2f}×</text>')
    best = sorted((place for dot, place in zip(dots, places, strict=True) if dot.on_frontier))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in best)
    return "\n".join(
        [
            f'{HEAD} viewBox="0 0 {WIDTH} {height}" width="100%" style="max-width:{WIDTH}px" role="img">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            f'<text class="title" x="10" y="24">{escape(title)}</text>',
            f'<text class="note" x="10" y="43">{escape(note)}</text>',
            *(_bound(*bound, low, high, height) if bound is not None else ()),
            f'<polyline class="line" points="{line}"/>',
            *drawn,
            f'<text class="note" x="{LEFT}" y="{height - 16}">{escape(error)}, 1e{low:.0f} to 1e{high:.0f}</text>',
            "</svg>",
            "",
        ]
    )


def _labels(places: Sequence[tuple[float, float]]) -> list[float]:
    """Where each label stands, as high as its dot or as far below that as others in its way push it."""
    found = [0.0] * len(places)
    taken: list[tuple[float, float]] = []
    for index in sorted(range(len(places)), key=lambda index: places[index][1]):
        x, y = places[index]
        for other_x, other_y in sorted(taken, key=lambda place: place[1]):
            if abs(other_x - x) < LABEL and abs(other_y - y) < LINE:
                y = other_y + LINE
        taken.append((x, y))
        found[index] = y
    return found


def _bound(name: str, at: float, low: float, high: float, height: int) -> list[str]:
    x = LEFT + (math.log10(max(at, SMALLEST)) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    return [
        f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>',
        f'<text class="note" x="{x + 4:.1f}" y="{height - BOTTOM - 4}">{escape(name)}</text>',
    ]


def is_chart(path: Path) -> bool:
    """Is it a file of `frontier_chart`?"""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD.encode()
