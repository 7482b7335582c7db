"""The report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gptexport.parity.locate.replay import STEP_RATIO, StepError
from gptexport.parity.measure.measured import Measured
from gptexport.parity.measure.metrics import HISTOGRAM_EDGES, ShapeStats
from gptexport.parity.report.svg import RIGHT, WRONG, Axis, Series, dot_chart, line_chart, linear_axis, log_axis
from gptexport.parity.report.table import table
from gptexport.parity.verdict.judge import Verdict

TICKS = 50  # characters that stand side by side below a chart


def shapes_chart(verdict: Verdict) -> str:
    """The noise ratio of each shape, over its gate."""
    names = ["{}×{}".format(*row.shape) for row in verdict.shapes]
    ratios = [row.noise_ratio for row in verdict.shapes]
    gate = verdict.gates.noise_ratio
    x = Axis("shape, B×T", -0.5, len(names) - 0.5, [(float(k), name) for k, name in enumerate(names)])
    y = log_axis("noise ratio", ratios, at_least=(0.5, gate or 1.0))
    texts = [f"{name}: {ratio:.3g}" for name, ratio in zip(names, ratios, strict=True)]
    dots = _dots([_log10(ratio) for ratio in ratios], [RIGHT if row.passed else WRONG for row in verdict.shapes])
    chart = dot_chart("Noise ratio of each shape", x, y, dots, texts, _log10(gate) if gate else None)
    return f"<figure>{chart}</figure>"


def _dots(values: Sequence[float], marks: Sequence[str]) -> list[Series]:
    """Two clouds: what is within the gate, and what is over it."""
    return [
        Series(mark, range(len(values)), [v if m == mark else np.nan for v, m in zip(values, marks, strict=True)], mark)
        for mark in (RIGHT, WRONG)
    ]


def _log10(value: float) -> float:
    return float(np.log10(max(value, 1e-30))) if np.isfinite(value) else float("nan")


def errors_section(measured: Measured) -> str:
    stats = [s for s in measured.stats if s.each is not None and s.eager.finite]
    if not stats:
        return ""
    figures = [_histogram(stats), _by_position(max(stats, key=lambda s: s.shape[1]))]
    return f'<section><h2>The error of the logits</h2><div class="charts">{"".join(figures)}</div></section>'


def _histogram(stats: Sequence[ShapeStats]) -> str:
    counts = [np.sum([s.histogram[k] for s in stats], axis=0) for k in (0, 1)]
    shares = [100 * c / max(1, c.sum()) for c in counts]
    used = np.flatnonzero(counts[0] + counts[1])
    first, last = max(0, used[0] - 1), min(len(counts[0]), used[-1] + 2)
    middles = (HISTOGRAM_EDGES[:-1] + HISTOGRAM_EDGES[1:]) / 2
    x = Axis(
        "|error| / RMS of the logits",
        middles[first],
        middles[last - 1],
        [(float(e), f"1e{e:g}") for e in range(-10, 3) if middles[first] <= e <= middles[last - 1]],
    )
    y = linear_axis("% of logits", 0, float(max(s.max() for s in shares)) * 1.3)
    series = [
        Series(label, middles[first:last].tolist(), share[first:last].tolist(), style)
        for label, share, style in (("eager", shares[0], "eager"), ("artifact", shares[1], "actual"))
        if share.any()  # not of what is not finite
    ]
    chart = line_chart(
        "Histogram of the absolute error of the logits, of eager and of the artifact", x, y, series, fill=True
    )
    return f"<figure>{chart}<figcaption>How large the errors are, against float64.</figcaption></figure>"


def _by_position(stats: ShapeStats) -> str:
    each = stats.each
    assert each is not None
    T = stats.shape[1]
    edges = np.unique(np.linspace(0, T, min(T, 64) + 1).astype(int))
    middles = [float(a + b - 1) / 2 for a, b in pairwise(edges)]

    def rms(column: np.ndarray) -> list[float]:
        chosen = [column[(each.t >= a) & (each.t < b)] for a, b in pairwise(edges)]
        return [float(np.sqrt(np.square(c).mean())) / (stats.expected_rms or 1.0) for c in chosen]

    lines = {"eager": rms(each.eager_error), "actual": rms(each.error)}
    y = log_axis("relative RMS error", [v for line in lines.values() for v in line])
    series = [
        Series(
            label, middles, [float(np.log10(max(v, 1e-30))) if np.isfinite(v) else np.nan for v in lines[style]], style
        )
        for label, style in (("eager", "eager"), ("artifact", "actual"))
    ]
    chart = line_chart(
        f"Relative RMS error at each position, at T = {T}", linear_axis("position", 0, max(1, T - 1)), y, series
    )
    return f"<figure>{chart}<figcaption>At each position of the longest row, T = {T}.</figcaption></figure>"


def short_names(names: Sequence[str]) -> list[str]:
    """`module.model.layers.0` as `layers.0`: without the parents that all have in common."""
    parts = [name.split(".") for name in names]
    common = 0
    while parts and all(len(p) > common + 2 and p[common] == parts[0][common] for p in parts):
        common += 1
    return [".".join(p[common:]) for p in parts]


def steps_section(steps: Sequence[StepError]) -> str:
    """A dot for each step of the model, over its gate."""
    if not steps:
        return ""
    blocks = [(number, step.block) for number, step in enumerate(steps)]
    starts = [(float(n), b) for k, (n, b) in enumerate(blocks) if b and (k == 0 or blocks[k - 1][1] != b)]
    names = short_names([b for _, b in starts])
    every = max(1, -(-len(starts) * (2 + max(map(len, names), default=0)) // TICKS))
    ticks = [(n, name) for (n, _), name in zip(starts, names, strict=True)][::every]
    x = Axis("steps, in order of execution", -0.5, len(steps) - 0.5, ticks)
    finite = [s.ratio for s in steps if np.isfinite(s.ratio)]
    y = log_axis("× its own noise", finite, at_least=(0.5, STEP_RATIO))
    values = [float(np.log10(max(min(s.ratio, 10**y.high), 10**y.low))) for s in steps]
    groups = _dots(values, [RIGHT if s.right else WRONG for s in steps])
    names = [f"{s.name}: {s.ratio:.3g} × its noise" for s in steps]
    about = "Error of every step on its own inputs, over its noise"
    chart = dot_chart(about, x, y, groups, names, float(np.log10(STEP_RATIO)))
    texts = "Each is given the hidden state that the artifact itself had, so that an error before it does not count."
    figure = f"<figure>{chart}<figcaption>{texts}</figcaption></figure>"
    rows = [[s.name, "right" if s.right else "wrong", f"{s.ratio:.3g}", f"{s.max_ratio:.3g}"] for s in steps]
    numbers = table(["step", "", "× its noise", "the same of the largest error"], rows)
    return (
        f"<section><h2>Every step of the model, on its own inputs</h2>{figure}"
        f'<details class="long"><summary>All {len(steps)} in numbers</summary>{numbers}</details></section>'
    )
