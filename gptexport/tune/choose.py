"""The fastest within bounds, the frontier, and whether the noise leaves a choice. Numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gptexport.bench.measure import Ratio
from gptexport.errors import ExportError


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one candidate."""

    name: str
    kl: float  # nats, the mean over parity's positions: the model in float64 beside the artifact
    noise_ratio: float  # the error over eager's in the same dtype, the worst shape's
    parity: bool  # it passes the gates of its own precision
    seconds: float  # of a warm call: the median of the rounds' medians
    ratio: Ratio  # how many times as fast as the baseline, paired within rounds
    memory: int | None  # bytes: the most that its process held; None where that is not known
    disk: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a choice has to keep to."""

    max_kl: float
    max_memory: int | None = None

    def why_not(self, found: Measurement) -> str | None:
        """None where it is within them."""
        if not found.parity:
            return "it misses parity's gates"
        if not found.kl <= self.max_kl:  # NaN is not
            return f"its KL is {found.kl:.2g}, above {self.max_kl:g}"
        if self.max_memory is not None and found.memory is not None and found.memory > self.max_memory:
            return f"it takes {found.memory / 1e6:,.0f} MB, above {self.max_memory / 1e6:,.0f}"
        return None


def ranked(found: Sequence[Measurement], bounds: Bounds) -> list[Measurement]:
    """Those within the bounds, the fastest first.

    Raises:
        ExportError: there is none.
    """
    within = sorted((m for m in found if bounds.why_not(m) is None), key=lambda m: -m.ratio.median)
    if not within:
        reasons = "; ".join(f"{m.name}: {bounds.why_not(m)}" for m in found)
        raise ExportError(f"none of {len(found)} candidates is within the bounds ({reasons}). Allow a larger one.")
    return within


def frontier(found: Sequence[Measurement]) -> list[Measurement]:
    """Those that no other is both as fast and as exact as, the most exact first. Rounding errors count as they are."""
    kept: list[Measurement] = []
    finite = [m for m in found if math.isfinite(m.kl)]
    for m in sorted(finite, key=lambda m: (m.kl, -m.ratio.median)):
        if not kept or m.ratio.median > kept[-1].ratio.median:
            kept.append(m)
    return kept


def in_doubt(within: Sequence[Measurement]) -> list[Measurement]:
    """Of candidates in order of speed, those that may be as fast as the first: quartiles overlap, or say nothing."""
    first, *others = within
    if first.ratio.noisy:
        return list(others)
    return [m for m in others if m.ratio.noisy or m.ratio.high >= first.ratio.low]
