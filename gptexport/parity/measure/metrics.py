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
    """Of one implementation against the reference, over all positions of one shape where the reference is finite."""

    rms: float
    max: float
    kl_mean: float  # mean over positions of KL(reference || implementation), nats
    finite: bool  # NaN and Inf are where the reference has them, each of the same kind, and nowhere else


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
    """One shape of the grid. Flips: positions whose argmax differs from the reference's.

    Where the float64 reference is in doubt eager is the reference, `doubt` says why, and `eager` is the difference of
    further eager runs from it.
    """

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
    agreement: ErrorStats | None = None  # of the session against eager
    doubt: str | None = None

    @property
    def top1_agreement(self) -> float:
        return 1.0 - len(self.flip_margins) / self.positions


def compare(draws: Iterable[Draw], *, intended: bool = True) -> ShapeStats:
    """Compare the session's logits, and the eager model's, with the float64 reference.

    Args:
        draws: one or more of the same shape. Taken one by one, so that a generator keeps only one in memory.
        intended: NaN and Inf in the reference are the model's own, and not those of damaged weights.
    """
    sums = np.zeros(2)  # of expected^2, of its centred square
    peak = 0.0
    eager_part, actual_part, agreement = _Part(), _Part(), _Part()
    columns: list[dict[str, Any]] = []
    count = rows = 0
    for draw in draws:
        B, T, V = draw.expected.shape
        for start, (reference, eager, actual) in _chunks(draw):
            finite = np.isfinite(reference)
            numbers, inside = int(finite.sum()), _finite(reference, finite)
            square = np.square(inside).sum()
            mean = inside.sum(axis=-1, keepdims=True) / np.maximum(finite.sum(axis=-1, keepdims=True), 1)
            sums += square, np.square(_finite(inside - mean, finite)).sum()
            peak = max(peak, float(np.abs(inside).max()))
            count += numbers
            scale = float(np.sqrt(square / max(numbers, 1))) or 1.0
            log_p, log_eager, log_actual = (_log_softmax(logits) for logits in (reference, eager, actual))
            kl = _kl(log_p, log_actual)
            eager_part.add(reference, eager, _kl(log_p, log_eager), scale)
            actual_part.add(reference, actual, kl, scale)
            agreement.add(eager, actual, kl, scale)
            at = np.arange(start, start + len(reference))
            where = {"row": rows + at // T, "t": at % T, "id": draw.ids.reshape(-1)[at]}
            seen = _each_position(reference, [eager, actual], (log_p, log_actual), _next_ids(draw.ids)[at])
            columns.append(where | seen | {"kl": kl})
        rows += B
    each = Positions(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    elements, positions = max(count, 1), len(each.t)
    if not count or (not intended and count < positions * V):  # there is nothing to compare with
        eager_part.finite = False
    return ShapeStats(
        shape=(B, T),
        positions=positions,
        expected_rms=float(np.sqrt(sums[0] / elements)),
        expected_max=peak,
        expected_spread=float(np.sqrt(sums[1] / elements)),
        eager=eager_part.stats(elements, positions),
        actual=actual_part.stats(elements, positions),
        flip_margins=tuple(each.margin[each.flipped].tolist()),
        each=each,
        histogram=(tuple(eager_part.histogram.tolist()), tuple(actual_part.histogram.tolist())),
        agreement=agreement.stats(elements, positions),
    )


class _Part:
    """Running sums of one implementation's error."""

    def __init__(self) -> None:
        self.square = self.max = self.kl = 0.0
        self.finite = True
        self.histogram = np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64)

    def add(self, reference: Logits, candidate: Logits, divergence: Logits, scale: float) -> None:
        if not same_kind(reference, candidate):
            self.finite = False
            return
        error = _error(candidate, reference)
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


def same_kind(reference: Logits, candidate: Logits) -> bool:
    """Whether the two have NaN, +Inf and -Inf at the same places, and finite numbers everywhere else."""
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(candidate)):
        return False
    return bool(finite.all()) or np.array_equal(reference[~finite], candidate[~finite], equal_nan=True)


def largest_difference(reference: Logits, candidate: Logits) -> float:
    """Of two arrays of one shape; Inf where one has NaN or Inf and the other has not."""
    if not same_kind(reference, candidate):
        return float("inf")
    return float(_error(candidate.astype(np.float64), reference).max(initial=0.0))


def mean_kl(reference: Logits, candidate: Logits) -> float:
    """The mean KL divergence of logits (…,V), in nats."""
    log_p, log_q = (
        _log_softmax(each.reshape(-1, each.shape[-1]).astype(np.float64)) for each in (reference, candidate)
    )
    return float(_kl(log_p, log_q).mean())


def _error(candidate: Logits, reference: Logits) -> Logits:
    """|candidate - reference|, 0 where the reference is not finite: `same_kind` has seen to that."""
    with np.errstate(invalid="ignore"):
        return _finite(np.abs(candidate - reference), np.isfinite(reference))


def _finite(values: Logits, finite: npt.NDArray[np.bool_]) -> Logits:
    """`values`, with 0 where they are not to count."""
    return values if finite.all() else np.where(finite, values, 0.0)


def _kl(log_p: Logits, log_q: Logits) -> Logits:
    """(N) KL of two distributions (N,V), nats; 0 at a position where the first is none, all its logits being NaN."""
    with np.errstate(invalid="ignore"):
        terms = np.where(log_p == -np.inf, 0.0, np.exp(log_p) * (log_p - log_q))
    found = np.where(np.isnan(log_p).any(axis=-1), 0.0, terms.sum(axis=-1))
    return np.maximum(0.0, found)  # rounding alone may put a KL of nothing a hair below zero


def _each_position(
    reference: Logits, candidates: list[Any], log_probabilities: tuple[Logits, Logits], next_ids: Ids
) -> dict[str, Any]:
    """The columns of Positions that come from logits (N,V)."""
    eager, actual = candidates
    log_p, log_q = log_probabilities
    V = reference.shape[-1]
    top = np.partition(reference, V - 2, axis=-1)[:, -2:] if V > 1 else np.repeat(reference, 2, axis=-1)
    with np.errstate(invalid="ignore"):  # of two that are -Inf
        margin = top[:, 1] - top[:, 0]
    has_next = (next_ids >= 0) & (next_ids < V)
    at = (np.arange(len(reference)), np.clip(next_ids, 0, V - 1))
    return {
        "error": np.sqrt(np.square(_error(actual, reference)).mean(axis=-1)),
        "eager_error": np.sqrt(np.square(_error(eager, reference)).mean(axis=-1)),
        "margin": margin,
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
