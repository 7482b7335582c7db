"""Small charts as inline SVG: no scripts, no fonts, nothing from elsewhere. Each says in words what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 270
LEFT, MARGIN, TOP, BOTTOM = 58, 12, 34, 46
RIGHT, WRONG = "right", "wrong"  # styles of dots: within the gate, and over it


@dataclass(frozen=True)
class Series:
    """One line or one cloud of dots; `style`, a class of the report's CSS: `eager`, `actual`, `right` or `wrong`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str


@dataclass(frozen=True)
class Axis:
    """From where to where, with what at the ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float, start: float, end: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return start + min(1.0, max(0.0, share)) * (end - start)


def linear_axis(label: str, low: float, high: float) -> Axis:
    span = max(high - low, 1e-12)
    step = 10.0 ** np.floor(np.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return Axis(label, low, high, [(float(t), f"{t:g}") for t in ticks])


def log_axis(label: str, values: Sequence[float], *, at_least: tuple[float, float] | None = None) -> Axis:
    """An axis of log10(value): decades that hold all finite positive values."""
    good = [v for v in (*values, *(at_least or ())) if np.isfinite(v) and v > 0] or [1.0]
    low, high = np.floor(np.log10(min(good))), np.ceil(np.log10(max(good)) + 1e-9)
    high = max(high, low + 1)
    every = max(1, int(np.ceil((high - low) / 6)))
    return Axis(label, low, high, [(float(e), _power(int(e))) for e in np.arange(low, high + 1, every)])


def line_chart(about: str, x: Axis, y: Axis, series: Sequence[Series], *, fill: bool = False) -> str:
    """Lines over a common axis; `fill` shades down to the axis, as a histogram is drawn."""
    body, shown = [], []
    for one in series:
        points = [_point(x, y, a, b) for a, b in zip(one.x, one.y, strict=True) if np.isfinite(a) and np.isfinite(b)]
        if not points:
            continue
        shown.append(one)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        if fill:
            floor = HEIGHT - BOTTOM
            shape = f"{points[0][0]:.1f},{floor} {path} {points[-1][0]:.1f},{floor}"
            body.append(f'<polygon class="fill {one.style}" points="{shape}"/>')
        body.append(f'<polyline class="line {one.style}" points="{path}"/>')
        if len(points) == 1:
            body.append(f'<circle class="dot {one.style}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="4"/>')
    return _frame(about, x, y, body, shown)


def dot_chart(about: str, x: Axis, y: Axis, series: Sequence[Series], names: Sequence[str], gate: float | None) -> str:
    """A dot for each value, with its name as a tooltip, and a line at the gate."""
    body = []
    if gate is not None:
        height = y.at(gate, HEIGHT - BOTTOM, TOP)
        body.append(f'<line class="gate" x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{height:.1f}" y2="{height:.1f}"/>')
        body.append(f'<text class="gate" x="{WIDTH - MARGIN}" y="{height - 5:.1f}" text-anchor="end">gate</text>')
    for one in series:
        for a, b, name in zip(one.x, one.y, names, strict=True):
            if np.isnan(b):
                continue
            cx, cy = _point(x, y, a, b)
            body.append(_dot(one.style, cx, cy, name))
    return _frame(about, x, y, body, series if len(series) > 1 else (), dots=True)


def _dot(style: str, x: float, y: float, title: str = "") -> str:
    """A circle of what is right, a diamond of what is wrong: they differ in shape, not in colour alone."""
    title = f"<title>{escape(title)}</title>" if title else ""
    if style == RIGHT:
        return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
    return f'<path class="dot {style}" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5-5.5z">{title}</path>'


def _point(x: Axis, y: Axis, a: float, b: float) -> tuple[float, float]:
    return x.at(a, LEFT, WIDTH - MARGIN), y.at(b, HEIGHT - BOTTOM, TOP)


def _frame(about: str, x: Axis, y: Axis, body: Sequence[str], series: Sequence[Series], *, dots: bool = False) -> str:
    floor, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about, quote=True)}">']
    for value, text in y.ticks:
        at = y.at(value, floor, TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x.ticks:
        at = x.at(value, LEFT, WIDTH - MARGIN)
        parts.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 18}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{floor}" y2="{floor}"/>')
    parts += body
    centre = (LEFT + WIDTH - MARGIN) / 2
    parts.append(f'<text x="{centre}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    turned = f"translate(13 {middle:.0f}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(y.label)}</text>')
    for number, one in enumerate(series):
        at = LEFT + 8 + 120 * number
        line = f'<line class="line {one.style}" x1="{at}" x2="{at + 26}" y1="14" y2="14"/>'
        parts.append(_dot(one.style, at + 18, 14) if dots else line)
        parts.append(f'<text x="{at + 32}" y="18">{escape(one.label)}</text>')
    return "".join(parts) + "</svg>"


def _power(exponent: int) -> str:
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return f'10<tspan dy="-5" font-size="10">{exponent}</tspan>'
