"""Speeds as horizontal bars: one SVG that opens anywhere, without scripts or fonts from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, LEFT, RIGHT, BAR, TITLE, GAP, TOP = 390, 76, 122, 18, 20, 12, 76  # a telephone's width
WIDEST = 720  # pixels that it grows to
CAP = 8.0  # a bar is at most so many times as long as the baseline's; what is faster is written beside it
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" class="gptexport-bench"'
HEAD_BEFORE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 '  # 0.1
CHART = "chart of gptexport bench"
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: 600 } .note, .value { fill: #555 } .shape { font-weight: 600 }
.bar { fill: #9aa7b5 } .own { fill: #2563a8 } .noisy { fill-opacity: .25 }
.base { stroke: #222; stroke-dasharray: 3 3 } .spread { stroke: #222; stroke-width: 1.5 } .paper { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .note, .value { fill: #bbb } .paper { fill: #16181c } .base, .spread { stroke: #eee }
}
"""


@dataclass(frozen=True)
class Bar:
    """How many times as fast as the baseline, between which quartiles, and the seconds of a call."""

    ratio: float
    low: float
    high: float
    seconds: float
    noisy: bool = False  # the quartiles are too far apart for the ratio to be given

    @property
    def label(self) -> str:
        time = f"{1e3 * self.seconds:.3g}" if self.seconds < 0.1 else f"{1e3 * self.seconds:,.0f}"
        return f"{'noise' if self.noisy else f'{self.ratio:.2f}×'} · {time} ms"


def speed_chart(title: str, baseline: str, bars: Mapping[str, Mapping[str, Bar]]) -> str:
    """An SVG document, as wide as its page but for the largest.

    Args:
        baseline: whose speed is 1, where the dashed line is.
        bars: by shape, by side.
    """
    certain = [bar.high for row in bars.values() for bar in row.values() if not bar.noisy]
    widest = min(CAP, max([1.0, *certain]))
    scale = (WIDTH - LEFT - RIGHT) / widest
    parts, y = [], TOP
    for shape, row in bars.items():
        parts.append(f'<text class="shape" x="10" y="{y + 12}">{escape(shape)}</text>')
        y += TITLE
        for name, bar in row.items():
            parts += _bar(name, bar, y, widest, own=name != baseline or len(row) == 1)
            y += BAR
        y += GAP
    line = f'<line class="base" x1="{LEFT + scale:.1f}" x2="{LEFT + scale:.1f}" y1="{TOP - 6}" y2="{y - GAP}"/>'
    about = "; ".join(
        f"{shape}: " + ", ".join(f"{name} {bar.label}" for name, bar in row.items()) for shape, row in bars.items()
    )
    notes = (
        f"speed of warm calls; {escape(baseline)} is the dashed line",
        "longer is faster; thin lines join the quartiles",
    )
    head = [
        f'{HEAD} viewBox="0 0 {WIDTH} {y}" width="100%" style="max-width:{WIDEST}px" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(about)}</desc><style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{y}"/>',
        f'<text class="title" x="10" y="24">{escape(title)}</text>',
        *(f'<text class="note" x="10" y="{43 + 16 * number}">{note}</text>' for number, note in enumerate(notes)),
    ]
    return "\n".join([*head, *parts, line, "</svg>", ""])


def _bar(name: str, bar: Bar, y: int, widest: float, *, own: bool) -> list[str]:
    scale = (WIDTH - LEFT - RIGHT) / widest
    width = min(bar.ratio, widest) * scale
    low, high = (LEFT + min(end, widest) * scale for end in (bar.low, bar.high))
    kind = f"bar{' own' if own else ''}{' noisy' if bar.noisy else ''}"
    end = max(LEFT + width, high)
    return [
        f'<text x="{LEFT - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 4}"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7}" y2="{y + 7}"/>' if high > low else "",
        f'<text class="value" x="{end + 5:.1f}" y="{y + 11}">{escape(bar.label)}</text>',
    ]


def is_chart(path: Path) -> bool:
    """Is it a file of `speed_chart`?"""
    with path.open("rb") as file:
        return file.read(max(len(HEAD), len(HEAD_BEFORE))).decode("utf-8", "replace").startswith((HEAD, HEAD_BEFORE))
