"""The figures that people know from llama.cpp and the papers, from one number per position. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gptexport.parity.measure.metrics import ShapeStats

PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0)
DP_PERCENTILES = (99.9, 99.0, 95.0, 50.0, 5.0, 1.0, 0.1)
BINS = 16  # of positions

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """With its standard error."""

    mean: float
    se: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """The positions of one stretch of a row, or of one row of the batch."""

    name: str
    positions: int
    kl_mean: float
    noise_ratio: float  # RMS error over eager's


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Over the whole grid. Of what needs the token that came (Δp, perplexity): None where no row has two tokens."""

    positions: int
    kl: Mean
    kl_max: float
    kl_percentiles: dict[str, float]
    top1: Mean
    top5: Mean
    flips: int
    flips_in_ties: int
    flips_outside_ties: int
    dp_rms: Mean | None  # change of the probability of the token that came
    dp_percentiles: dict[str, float]
    perplexity: Mean | None  # the reference's
    actual_perplexity: Mean | None
    perplexity_ratio: Mean | None  # actual / reference
    by_position: tuple[Group, ...]
    by_row: tuple[Group, ...]


def summarize(stats: Sequence[ShapeStats], tie: float) -> Summary | None:
    """Pool the positions of all shapes; None where some logits are not finite.

    Args:
        tie: two logits of the reference this near may change places by rounding alone.
    """
    parts = [s.each for s in stats if s.each is not None]
    if not parts or not all(s.actual.finite and s.eager.finite for s in stats):
        return None
    column = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    flipped = column["expected_top"] != column["actual_top"]
    outside = flipped & (column["margin"] > tie)
    came = np.isfinite(column["nll"]) & np.isfinite(column["actual_nll"])  # not where a logit is -Inf on purpose
    nll, actual_nll = column["nll"][came], column["actual_nll"][came]
    dp = np.exp(-actual_nll) - np.exp(-nll)
    return Summary(
        positions=len(flipped),
        kl=mean_of(column["kl"]),
        kl_max=float(column["kl"].max()),
        kl_percentiles=_percentiles(column["kl"], PERCENTILES),
        top1=mean_of((~flipped).astype(np.float64)),
        top5=mean_of(column["top5"]),
        flips=int(flipped.sum()),
        flips_in_ties=int((flipped & ~outside).sum()),
        flips_outside_ties=int(outside.sum()),
        dp_rms=_root(mean_of(np.square(dp))) if len(dp) else None,
        dp_percentiles=_percentiles(dp, DP_PERCENTILES) if len(dp) else {},
        perplexity=_exp(mean_of(nll)) if len(dp) else None,
        actual_perplexity=_exp(mean_of(actual_nll)) if len(dp) else None,
        perplexity_ratio=_exp(mean_of(actual_nll - nll)) if len(dp) else None,
        by_position=_by_position(column),
        by_row=_by_row(stats),
    )


def mean_of(values: Column) -> Mean:
    se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Mean(mean=float(values.mean()), se=se)


def _exp(of: Mean) -> Mean:
    with np.errstate(over="ignore"):  # a model may be as wrong as that
        value = float(np.exp(of.mean))
    return Mean(mean=value, se=value * of.se)


def _root(of: Mean) -> Mean:
    value = float(np.sqrt(of.mean))
    return Mean(mean=value, se=of.se / (2 * value) if value else 0.0)


def _percentiles(values: Column, wanted: Sequence[float]) -> dict[str, float]:
    return {f"{p:g}": float(v) for p, v in zip(wanted, np.percentile(values, wanted), strict=True)}


def _by_position(column: dict[str, Column]) -> tuple[Group, ...]:
    """Equal stretches of T, over all shapes that reach there."""
    longest = int(column["t"].max()) + 1
    edges = np.unique(np.linspace(0, longest, min(BINS, longest) + 1).astype(int))
    groups = []
    for start, end in pairwise(edges):
        chosen = (column["t"] >= start) & (column["t"] < end)
        groups.append(_group(f"{start}–{end - 1}" if end - start > 1 else f"{start}", column, chosen))
    return tuple(groups)


def _by_row(stats: Sequence[ShapeStats]) -> tuple[Group, ...]:
    """Each row of the widest batch of the grid: a session that mixes rows up shows here."""
    widest = max(stats, key=lambda s: s.shape[0])
    if widest.each is None or widest.shape[0] < 2:
        return ()
    column = vars(widest.each)
    B = widest.shape[0]
    rows = column["row"] % B  # those that were measured: a saved file says any B
    return tuple(_group(f"row {row} of {B}", column, rows == row) for row in np.unique(rows))


def _group(name: str, column: dict[str, Column], chosen: npt.NDArray[np.bool_]) -> Group:
    noise = float(np.sqrt(np.square(column["eager_error"][chosen]).mean()))
    error = float(np.sqrt(np.square(column["error"][chosen]).mean()))
    return Group(
        name=name,
        positions=int(chosen.sum()),
        kl_mean=float(column["kl"][chosen].mean()),
        noise_ratio=error / noise if noise else np.inf if error else 0.0,
    )
