"""How far logits are from a float64 reference, and how far eager is: the numbers, without judgement. Numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating]  # (B,T,V)
Ids = npt.NDArray[np.int64]

CHUNK_ELEMENTS = 1 << 22  # of logits worked on at once, so that 1x1024x50257 stays in bounded memory
HISTOGRAM_ELEMENTS = 1 << 20  # of a chunk's errors that are counted
HISTOGRAM_EDGES = np.arange(-10.0, 2.01, 0.25)  # log10 of |error| over the RMS of the logits
TOP = 5


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch, as the reference, eager and the session see it."""

    ids: Ids  # (B,T)
    expected: Logits
    eager: Logits
    actual: Logits


@dataclass(frozen=True, kw_only=True)
class ErrorStats:
    """The errors of one implementation against the reference, over all positions of one shape."""

    rms: float
    max: float
    kl_mean: float  # mean over positions of KL(reference || implementation), nats
    finite: bool


@dataclass(frozen=True, kw_only=True)
class Positions:
    """One number per position of one shape, all draws one after another. NaN where there is none."""

    row: npt.NDArray[np.int64]  # of the batch, draws counted on
    t: npt.NDArray[np.int64]
    id: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]  # RMS over the vocabulary, of the session
    eager_error: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    margin: npt.NDArray[np.float64]  # the reference's top1 - top2
    expected_top: npt.NDArray[np.int64]
    actual_top: npt.NDArray[np.int64]
    top5: npt.NDArray[np.float64]  # share of the reference's five most probable that are in the session's five
    nll: npt.NDArray[np.float64]  # of the token that came, by the reference; NaN at the last position of a row
    actual_nll: npt.NDArray[np.float64]

    @property
    def flipped(self) -> npt.NDArray[np.bool_]:
        return self.expected_top != self.actual_top  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ShapeStats:
    """One shape of the grid. Flips: positions whose argmax differs from the reference's."""

    shape: tuple[int, int]
    positions: int
    expected_rms: float
    expected_max: float
    expected_spread: float  # RMS of the logits around each position's mean: what softmax sees
    eager: ErrorStats
    actual: ErrorStats
    flip_margins: tuple[float, ...]  # the reference's top1 - top2 at each flip of `actual`
    each: Positions | None = None
    histogram: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # of eager's and the session's |error|

    @property
    def top1_agreement(self) -> float:
        return 1.0 - len(self.flip_margins) / self.positions


def compare(draws: Iterable[Draw]) -> ShapeStats:
    """Compare the session's logits, and the eager model's, with the float64 reference.

    Args:
        draws: one or more of the same shape. Taken one by one, so that a generator keeps only one in memory.
    """
    sums = np.zeros(2)  # of expected^2, of its centred square
    peak = 0.0
    parts = [_Part(), _Part()]
    columns: list[dict[str, Any]] = []
    count = rows = 0
    for draw in draws:
        B, T, V = draw.expected.shape
        count += draw.expected.size
        for start, (reference, *candidates) in _chunks(draw):
            log_p = _log_softmax(reference)
            sums += np.square(reference).sum(), np.square(reference - reference.mean(axis=-1, keepdims=True)).sum()
            peak = max(peak, float(np.abs(reference).max()))
            scale = float(np.sqrt(np.square(reference).mean())) or 1.0
            probability = np.exp(log_p)
            log_q = [_log_softmax(candidate) for candidate in candidates]
            # rounding alone may put a KL of nothing a hair below zero
            kl = [np.maximum(0.0, (probability * (log_p - q)).sum(axis=-1)) for q in log_q]
            for part, candidate, divergence in zip(parts, candidates, kl, strict=True):
                part.add(reference, candidate, divergence, scale)
            at = np.arange(start, start + len(reference))
            where = {"row": rows + at // T, "t": at % T, "id": draw.ids.reshape(-1)[at]}
            seen = _each_position(reference, candidates, (log_p, log_q[1]), _next_ids(draw.ids)[at])
            columns.append(where | seen | {"kl": kl[1]})
        rows += B
    each = Positions(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    return ShapeStats(
        shape=(B, T),
        positions=len(each.t),
        expected_rms=float(np.sqrt(sums[0] / count)),
        expected_max=peak,
        expected_spread=float(np.sqrt(sums[1] / count)),
        eager=parts[0].stats(count, len(each.t)),
        actual=parts[1].stats(count, len(each.t)),
        flip_margins=tuple(each.margin[each.flipped].tolist()) if V > 1 else (),
        each=each,
        histogram=(tuple(parts[0].histogram.tolist()), tuple(parts[1].histogram.tolist())),
    )


class _Part:
    """Running sums of one implementation's error."""

    def __init__(self) -> None:
        self.square = self.max = self.kl = 0.0
        self.finite = True
        self.histogram = np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64)

    def add(self, reference: Logits, candidate: Logits, divergence: Logits, scale: float) -> None:
        if not np.isfinite(candidate).all():
            self.finite = False
            return
        error = np.abs(candidate - reference)
        self.square += float(np.square(error).sum())
        self.max = max(self.max, float(error.max()))
        self.kl += float(divergence.sum())
        some = error.reshape(-1)[:: -(-error.size // HISTOGRAM_ELEMENTS)]
        logs = np.log10(np.maximum(some / scale, 1e-300)).clip(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
        self.histogram += np.histogram(logs, HISTOGRAM_EDGES)[0]

    def stats(self, elements: int, positions: int) -> ErrorStats:
        if not self.finite:
            return ErrorStats(rms=np.inf, max=np.inf, kl_mean=np.inf, finite=False)
        rms = float(np.sqrt(self.square / elements))
        return ErrorStats(rms=rms, max=self.max, kl_mean=self.kl / positions, finite=True)


def _each_position(
    reference: Logits, candidates: list[Any], log_probabilities: tuple[Logits, Logits], next_ids: Ids
) -> dict[str, Any]:
    """The columns of Positions that come from logits (N,V)."""
    eager, actual = candidates
    log_p, log_q = log_probabilities
    V = reference.shape[-1]
    top = np.partition(reference, V - 2, axis=-1)[:, -2:] if V > 1 else np.repeat(reference, 2, axis=-1)
    has_next = next_ids >= 0
    at = (np.arange(len(reference)), np.maximum(next_ids, 0))
    return {
        "error": np.sqrt(np.square(actual - reference).mean(axis=-1)),
        "eager_error": np.sqrt(np.square(eager - reference).mean(axis=-1)),
        "margin": top[:, 1] - top[:, 0],
        "expected_top": reference.argmax(axis=-1),
        "actual_top": actual.argmax(axis=-1),
        "top5": _shared_top(reference, actual),
        "nll": np.where(has_next, -log_p[at], np.nan),
        "actual_nll": np.where(has_next, -log_q[at], np.nan),
    }


def _shared_top(reference: Logits, actual: Logits) -> npt.NDArray[np.float64]:
    k = min(TOP, reference.shape[-1])
    best = [np.argpartition(logits, -k, axis=-1)[:, -k:] for logits in (reference, actual)]
    return (best[0][:, :, None] == best[1][:, None, :]).any(axis=-1).mean(axis=-1)  # type: ignore[no-any-return]


def _next_ids(ids: Ids) -> Ids:
    """The token that came after each position, -1 at the last of a row; flat."""
    return np.concatenate([ids[:, 1:], np.full((len(ids), 1), -1)], axis=1).reshape(-1)


def _chunks(draw: Draw) -> Iterator[tuple[int, list[npt.NDArray[np.float64]]]]:
    V = draw.expected.shape[-1]
    rows = max(1, CHUNK_ELEMENTS // V)
    flat = [array.reshape(-1, V) for array in (draw.expected, draw.eager, draw.actual)]
    for start in range(0, len(flat[0]), rows):
        yield start, [array[start : start + rows].astype(np.float64) for array in flat]


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # Inf - Inf; `finite` says what is not
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]
