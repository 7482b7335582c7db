"""From logits to the next token: greedy, or drawn from the distribution that the options leave.

Every row draws from a stream of random numbers of its own, which its seed alone decides: the text of a row does not
depend on the rows beside it. The options apply in the order of Hugging Face's `generate`: repetition penalty,
temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.errors import InputError

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        InputError: an option is out of its range.
    """

    temperature: float = 1.0  # logits are divided by it; 0 takes the most likely token, and draws nothing
    top_k: int | None = None  # of the k most likely tokens; those as likely as the last of them stay too
    top_p: float | None = None  # of the fewest tokens that together have this probability (arXiv 1904.09751)
    min_p: float | None = None  # of those at least this probable relative to the most likely (arXiv 2407.01082)
    repetition_penalty: float = (
        1.0  # logits of tokens that came are divided, negative ones multiplied (arXiv 1909.05858)
    )

    def __post_init__(self) -> None:
        for name, value, ok, expected in (
            ("temperature", self.temperature, _within(self.temperature, 0, math.inf), "a number of 0 or more"),
            ("top_k", self.top_k, self.top_k is None or _is_count(self.top_k), "an integer of 1 or more"),
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
                raise InputError(f"{name} is {value!r}; expected {expected}.")


def random_streams(seeds: int | Sequence[int], rows: int) -> list[np.random.Generator]:
    """One stream a row. Philox, so that neighbouring seeds have nothing in common (Salmon et al., 2011).

    Args:
        seeds: one for all rows, or one for each; 0 or more.

    Raises:
        InputError: not as many as rows, or not such integers.
    """
    each = [seeds] * rows if isinstance(seeds, int | np.integer) else list(seeds)
    if len(each) != rows or not all(_is_count(seed, least=0) for seed in each):
        raise InputError(f"seed is {seeds!r}; expected an integer of 0 or more, or one for each of the {rows} rows.")
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
    """
    if sampling.repetition_penalty != 1:
        for row, ids in zip(logits, seen, strict=True):
            row[ids] = np.where(
                row[ids] > 0, row[ids] / sampling.repetition_penalty, row[ids] * sampling.repetition_penalty
            )
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(axis=1), np.int64)
    uniform = np.array([stream.random() for stream in streams])
    return inverse_cdf(weights_of(logits, sampling), uniform)


def weights_of(logits: Floats, sampling: Sampling) -> NDArray[np.float64]:
    """What the probabilities are proportional to, float64 (B,V); 0 where an option rules a token out."""
    scaled = logits.astype(np.float64) / sampling.temperature
    V = scaled.shape[1]
    if sampling.top_k is not None and sampling.top_k < V:
        least = np.partition(scaled, V - sampling.top_k, axis=1)[:, V - sampling.top_k, None]
        scaled[scaled < least] = -np.inf
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    if sampling.top_p is not None and sampling.top_p < 1:
        for row in weights:
            _keep_nucleus(row, sampling.top_p)
    if sampling.min_p is not None:
        weights[weights < sampling.min_p] = 0  # the most likely token's weight is 1
    return weights


def _keep_nucleus(weights: NDArray[np.float64], top_p: float) -> None:
    """Zero all but the fewest, the heaviest, that together reach `top_p` of the sum.

    Only those above (1 - top_p) / V of it can be among them, as all the others together have less than 1 - top_p; they
    are few, and sorting all of a vocabulary would take longer than the model.
    """
    total = weights.sum()
    candidates = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    kept = order[: np.searchsorted(np.cumsum(weights[order]), top_p * total) + 1]
    values = weights[kept]
    weights[:] = 0
    weights[kept] = values


def inverse_cdf(weights: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """The token at which the running sum of a row's weights passes its number from [0, 1)."""
    sums = np.cumsum(weights, axis=1)
    chosen = [np.searchsorted(row, u * row[-1], side="right") for row, u in zip(sums, uniform, strict=True)]
    last = [int(np.flatnonzero(row)[-1]) for row in weights]  # where rounding carries u * sum to the very end
    return np.minimum(np.array(chosen, np.int64), np.array(last, np.int64))


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def _within(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type, operator]
