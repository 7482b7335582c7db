"""Error against speed, a dot for each candidate: one SVG that opens anywhere."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

from gptexport.tune.choose import Measurement

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 70, 120, 64, 46
SMALLEST = 1e-14  # KL below this is drawn there: it is rounding of the measurement
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


def frontier_chart(
    title: str, found: Sequence[Measurement], on_frontier: Collection[Measurement], kept: Measurement, max_kl: float
) -> str:
    """An SVG document: KL to the right, on a logarithmic scale, and how fast upwards."""
    errors = [max(m.kl, SMALLEST) if math.isfinite(m.kl) else 1.0 for m in found]
    low, high = math.log10(min([*errors, max_kl])) - 0.5, math.log10(max([*errors, max_kl])) + 0.5
    fastest = 1.1 * max(m.ratio.median for m in found)

    def x_of(kl: float) -> float:
        return LEFT + (math.log10(max(kl, SMALLEST)) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y_of(m: Measurement) -> float:
        return HEIGHT - BOTTOM - m.ratio.median / fastest * (HEIGHT - TOP - BOTTOM)

    dots = []
    for m, error in zip(found, errors, strict=True):
        kind = f"{'on' if m in on_frontier else 'off'}{' kept' if m is kept else ''}"
        x, y = x_of(error), y_of(m)
        dots.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        dots.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(m.name)} {m.ratio.median:.2f}×</text>')
    line = " ".join(f"{x_of(m.kl):.1f},{y_of(m):.1f}" for m in on_frontier)
    bound = x_of(max_kl)
    return "\n".join(
        [
            f'{HEAD} viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" style="max-width:{WIDTH}px" role="img">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
            f'<text class="title" x="10" y="24">{escape(title)}</text>',
            '<text class="note" x="10" y="43">higher is faster, left is more exact; the ringed dot was kept</text>',
            f'<line class="bound" x1="{bound:.1f}" x2="{bound:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
            f'<text class="note" x="{bound + 4:.1f}" y="{HEIGHT - BOTTOM - 4}">--max-kl</text>',
            f'<polyline class="line" points="{line}"/>',
            *dots,
            f'<text class="note" x="{LEFT}" y="{HEIGHT - 16}">mean KL divergence from the model in float64, '
            f"1e{low:.0f} to 1e{high:.0f} nats</text>",
            "</svg>",
            "",
        ]
    )


def is_chart(path: Path) -> bool:
    """Is it a file of `frontier_chart`?"""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD.encode()
