"""From logits to the next token: greedy, or drawn from the distribution that the options leave.

Every row draws from a stream of random numbers of its own, which its seed alone decides: the text of a row does not
depend on the rows beside it. The options apply in the order of Hugging Face's `generate`: repetition penalty,
temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.errors import ExecutionError, InputError, shown
from gptexport_runtime.inputs import is_count, items_of

Floats = NDArray[np.float32]
BLOCK = 256  # of a vocabulary, which is looked through block by block


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        InputError: an option is out of its range.
    """

    temperature: float = 1.0  # logits are divided by it; 0 takes the most likely token, and draws nothing
    top_k: int | None = None  # of the k most likely tokens; those as likely as the last of them stay too
    top_p: float | None = None  # of the fewest that together have this probability, and their ties (arXiv 1904.09751)
    min_p: float | None = None  # of those at least this probable relative to the most likely (arXiv 2407.01082)
    repetition_penalty: float = (
        1.0  # logits of tokens that came are divided, negative ones multiplied (arXiv 1909.05858)
    )

    def __post_init__(self) -> None:
        for name, value, ok, expected in (
            ("temperature", self.temperature, _within(self.temperature, 0, math.inf), "a number of 0 or more"),
            ("top_k", self.top_k, self.top_k is None or is_count(self.top_k), "an integer of 1 or more"),
            ("top_p", self.top_p, self.top_p is None or (_within(self.top_p, 0, 1) and self.top_p > 0), "in (0, 1]"),
            ("min_p", self.min_p, self.min_p is None or _within(self.min_p, 0, 1), "in [0, 1]"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                _within(self.repetition_penalty, 0, math.inf) and self.repetition_penalty > 0,
                "a number above 0",
            ),
        ):
            if not ok:
                raise InputError(f"{name} is {shown(value)}; expected {expected}.")


def random_streams(seeds: int | Sequence[int], rows: int) -> list[np.random.Generator]:
    """One stream a row. Philox, so that neighbouring seeds have nothing in common (Salmon et al., 2011).

    Args:
        seeds: one for all rows, or one for each; 0 or more.

    Raises:
        InputError: not as many as rows, or not such integers.
    """
    several = items_of(seeds)
    each: list[Any] = [seeds] * rows if several is None else several
    if len(each) != rows or not all(is_count(seed, least=0) for seed in each):
        raise InputError(
            f"seed is {shown(seeds)}; expected an integer of 0 or more, or one for each of the {rows} rows."
        )
    return [np.random.Generator(np.random.Philox(int(seed))) for seed in each]


def choose(
    logits: Floats, sampling: Sampling, streams: Sequence[np.random.Generator], seen: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The next token of every row.

    Args:
        logits: float32 (B,V); overwritten where there is a repetition penalty.
        streams: of each row; each gives one number, unless temperature is 0.
        seen: each row's tokens so far, for the repetition penalty.

    Returns: int64 (B).

    Raises:
        ExecutionError: a row's logits hold NaN or infinity.
    """
    penalty = sampling.repetition_penalty
    if penalty != 1:
        for row, ids in zip(logits, seen, strict=True):
            row[ids] = np.where(row[ids] > 0, row[ids] / penalty, row[ids] * penalty)
    best = np.asarray(logits.argmax(axis=1), np.int64)  # of NaN the first
    if not np.isfinite(logits[np.arange(len(best)), best]).all():
        raise ExecutionError(
            "the logits hold NaN or infinity, so no token can be chosen. Is the model's dtype too narrow?"
        )
    if sampling.temperature == 0:
        return best
    return np.array([_draw(row, sampling, stream) for row, stream in zip(logits, streams, strict=True)], np.int64)


def _draw(logits: Floats, sampling: Sampling, stream: np.random.Generator) -> int:
    ids, weights = tokens_left(logits, sampling)
    return int(ids[pick(weights, stream.random())])


def tokens_left(logits: Floats, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that the options leave a row of logits (V), and what their probabilities are proportional to."""
    V = len(logits)
    top = float(logits.max())
    if sampling.top_k is not None and sampling.top_k < V:
        ids = np.flatnonzero(logits >= _kth_largest(logits, sampling.top_k))
        logits = logits[ids]
    else:
        ids = np.arange(V)
    with np.errstate(over="ignore"):  # a temperature near 0 leaves the most likely token alone
        weights: NDArray[np.float64] = np.exp((logits.astype(np.float64) - top) / sampling.temperature)
    least = 0.0
    if sampling.top_p is not None and sampling.top_p < 1:
        least = _lightest_of_nucleus(weights, sampling.top_p)
    if sampling.min_p is not None:
        least = max(least, sampling.min_p)  # the most likely token's weight is 1
    if least > 0:
        kept = np.flatnonzero(weights >= least)
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def _kth_largest(values: Floats, k: int) -> np.float32:
    """By blocks first: k of them reach the k-th largest of their maxima, so no lesser value can be the one."""
    maxima = np.maximum.reduceat(values, np.arange(0, len(values), BLOCK))
    if k <= len(maxima):
        values = values[np.flatnonzero(values >= np.partition(maxima, -k)[-k])]
    found: np.float32 = np.partition(values, -k)[-k]
    return found


def _lightest_of_nucleus(weights: NDArray[np.float64], top_p: float) -> float:
    """The least weight of the fewest tokens, the heaviest, that together reach `top_p` of the sum.

    Halves what is looked at by its mean, on the side where it must be: sorting a whole vocabulary takes longer.
    """
    missing = top_p * weights.sum()
    while len(weights) > BLOCK:
        heavy = weights >= weights.mean()
        above = weights[heavy]
        if len(above) in (0, len(weights)):  # all alike
            break
        if above.sum() >= missing:
            weights = above
        else:
            missing -= above.sum()
            weights = weights[~heavy]
    ordered = np.sort(weights)[::-1]
    return float(ordered[min(int(np.searchsorted(np.cumsum(ordered), missing)), len(ordered) - 1)])


def pick(weights: NDArray[np.float64], uniform: float) -> int:
    """The index at which the running sum of `weights` passes `uniform`, from [0, 1), of it; by blocks first."""
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts))
    target = min(uniform * sums[-1], np.nextafter(sums[-1], 0))
    block = int(np.searchsorted(sums, target, side="right"))
    inside = weights[starts[block] : starts[block] + BLOCK]
    before = sums[block - 1] if block else 0.0
    at = int(np.searchsorted(np.cumsum(inside), target - before, side="right"))
    return int(starts[block]) + min(at, int(np.flatnonzero(inside)[-1]))  # rounding may pass the block's end


def _within(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type, operator]
