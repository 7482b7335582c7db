"""Speeds as horizontal bars: one SVG that opens anywhere, without scripts or fonts from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 760, 190, 110, 18, 16, 64
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" class="gptexport-bench"'
HEAD_BEFORE = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '  # 0.1
CHART = "chart of gptexport bench"
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 }
.title { font-size: 16px; font-weight: 600 } .note, .value { fill: #555 } .shape { font-weight: 600 }
.bar { fill: #9aa7b5 } .own { fill: #2563a8 } .base { stroke: #222; stroke-dasharray: 3 3 }
.paper { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .note, .value { fill: #bbb } .paper { fill: #16181c } .base { stroke: #eee }
}
"""


def speed_chart(title: str, baseline: str, speeds: Mapping[str, Mapping[str, tuple[float, str]]]) -> str:
    """An SVG document.

    Args:
        baseline: whose speed is 1, where the dashed line is.
        speeds: by shape, by candidate: its speed relative to the baseline's, and what to write behind the bar.
    """
    names = list(dict.fromkeys(name for row in speeds.values() for name in row))
    widest = max(max(speed for speed, _ in row.values()) for row in speeds.values())
    scale = (WIDTH - LEFT - RIGHT) / max(widest, 1.0)
    parts, y = [], TOP
    for shape, row in speeds.items():
        parts.append(f'<text class="shape" x="12" y="{y + 13}">{escape(shape)}</text>')
        for name in (name for name in names if name in row):
            speed, label = row[name]
            kind = "bar own" if name.startswith("gptexport") else "bar"
            parts += [
                f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{speed * scale:.1f}" height="{BAR - 4}"/>',
                f'<text class="value" x="{LEFT + speed * scale + 6:.1f}" y="{y + 13}">{escape(label)}</text>',
            ]
            y += BAR
        y += GAP
    line = f'<line class="base" x1="{LEFT + scale:.1f}" x2="{LEFT + scale:.1f}" y1="{TOP - 6}" y2="{y - GAP}"/>'
    about = "; ".join(
        f"{shape}: " + ", ".join(f"{name} {speed:.2f}" for name, (speed, _) in row.items())
        for shape, row in speeds.items()
    )
    size = f'viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}"'
    note = f"speed relative to {escape(baseline)}, which is the dashed line; longer is faster"
    head = [
        f'{HEAD} {size} role="img">',
        f"<title>{escape(title)}</title><desc>{escape(about)}</desc><style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{y}"/>',
        f'<text class="title" x="12" y="24">{escape(title)}</text><text class="note" x="12" y="44">{note}</text>',
    ]
    return "\n".join([*head, *parts, line, "</svg>", ""])


def is_chart(path: Path) -> bool:
    """Is it a file of `speed_chart`?"""
    with path.open("rb") as file:
        return file.read(max(len(HEAD), len(HEAD_BEFORE))).decode("utf-8", "replace").startswith((HEAD, HEAD_BEFORE))
