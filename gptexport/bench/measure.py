"""Rounds in which each side runs after the other, because a machine's speed drifts; a ratio is taken within a round.

Warm and cold are two figures. Warm: calls back to back, as a server that is busy makes them. Cold: one call after a
pause, when threads sleep and caches are another program's, as a person's first call finds it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gptexport.bench.worker import Burst, Forward, Shape, burst, random_ids
from gptexport.progress import seldom

SETTLE = 0.06  # seconds of calls before those that count: another side's threads may spin so long after its last
SPEND = 0.12  # seconds of calls that count, in each round
PAUSE = 0.25  # seconds before a cold call
COLD_ROUNDS = 3
NOISY = 1.5  # a ratio whose quartiles are so many times apart says nothing,
BUSY = 60.0  # nor does one of a process that lost a core so many times a second: its threads wait for one another


class Side(Protocol):
    """What is timed: a `Worker`, or something in this process."""

    def __call__(self, shape: Shape, *, settle: float, spend: float) -> Burst:
        """Calls at (B,T); see `burst`."""
        ...


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline: the median of the rounds' ratios, and their quartiles."""

    median: float
    low: float
    high: float
    noisy: bool  # it says nothing


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One side at one shape. Times in seconds."""

    name: str
    shape: Shape
    warm: float  # the median of the rounds' medians
    fastest: float
    cold: float
    ratio: Ratio  # of warm calls
    tokens_per_second: float  # warm
    gemm_fraction: float | None  # of `sgemm_rate`, warm; None where that, or the model's FLOPs, are not known


def in_this_process(run: Forward, vocab_size: int) -> Side:
    """A side that shares this process, its threads and its memory with others."""

    def side(shape: Shape, *, settle: float, spend: float) -> Burst:
        return burst(run, random_ids(shape, vocab_size), settle=settle, spend=spend)

    return side


def measure(
    sides: Mapping[str, Side],
    shapes: Sequence[Shape],
    *,
    baseline: str,
    rounds: int,
    flops: Callable[[int, int], float] | None = None,
    sgemm: float | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> list[Timing]:
    """Time every side at every shape, in turn within each round.

    Args:
        baseline: the side that the others' speed is given relative to.
        rounds: counted rounds; one more comes first, to warm up.
        flops: of a forward of (B,T), where the architecture's are known.
        sgemm: FLOP/s of the machine.
    """
    timings = []
    for B, T in shapes:
        progress(f"B,T = {B},{T}: {rounds} rounds of {', '.join(sides)}")
        warm: dict[str, list[float]] = {name: [] for name in sides}
        preempted: dict[str, list[float]] = {name: [] for name in sides}
        now_and_then = seldom(progress)
        for counted in range(-1, rounds):
            now_and_then(f"B,T = {B},{T}: {max(counted, 0)} of {rounds} rounds are done")
            for name, side in sides.items():
                made = side((B, T), settle=SETTLE, spend=SPEND)
                if counted >= 0:
                    warm[name].append(statistics.median(made.seconds))
                    preempted[name].append(made.preempted)
        cold = {name: statistics.median(_cold(side, (B, T), min(rounds, COLD_ROUNDS))) for name, side in sides.items()}
        ideal = flops(B, T) / sgemm if flops is not None and sgemm is not None else None
        busy = any(statistics.median(each) > BUSY for each in preempted.values())
        for name, seconds_each in warm.items():
            median = statistics.median(seconds_each)
            timings.append(
                Timing(
                    name=name,
                    shape=(B, T),
                    warm=median,
                    fastest=min(seconds_each),
                    cold=cold[name],
                    ratio=ratio_of(warm[baseline], seconds_each, busy=busy),
                    tokens_per_second=B * T / median,
                    gemm_fraction=ideal / median if ideal is not None else None,
                )
            )
    return timings


def ratio_of(baseline: Sequence[float], own: Sequence[float], *, busy: bool = False) -> Ratio:
    """Of seconds, round by round. `busy`: other programs took the cores meanwhile."""
    ratios = [base / mine for base, mine in zip(baseline, own, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(median, low, high, noisy=busy or high > NOISY * low)


def _cold(side: Side, shape: Shape, rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        time.sleep(PAUSE)
        seconds += side(shape, settle=0, spend=0).seconds
    return seconds
