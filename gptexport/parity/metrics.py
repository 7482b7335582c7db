"""How far logits are from a float64 reference, and how far eager is: the numbers, without judgement. Numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating]  # (B,T,V)

CHUNK_ELEMENTS = 1 << 23  # of logits worked on at once, so that 1x1024x50257 stays in bounded memory


@dataclass(frozen=True, kw_only=True)
class ErrorStats:
    """Of one implementation against the reference, over all positions of one shape."""

    rms: float
    max: float
    kl_mean: float  # mean over positions of KL(reference || implementation), nats
    finite: bool


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

    @property
    def top1_agreement(self) -> float:
        return 1.0 - len(self.flip_margins) / self.positions


def compare(draws: Iterable[tuple[Logits, Logits, Logits]]) -> ShapeStats:
    """Compare the session's logits, and the eager model's, with the float64 reference.

    Args:
        draws: (expected, eager, actual), each (B,T,V), for one or more draws of ids of the same shape. Taken one by
            one, so that a generator keeps only one in memory.
    """
    sums = np.zeros(2)  # of expected^2, of its centred square
    peak = 0.0
    parts = [_Part(), _Part()]
    margins: list[float] = []
    count = positions = 0
    for draw in draws:
        B, T, V = draw[0].shape
        count += draw[0].size
        positions += B * T
        for reference, *candidates in _chunks(*draw):
            log_p = _log_softmax(reference)
            sums += np.square(reference).sum(), np.square(reference - reference.mean(axis=-1, keepdims=True)).sum()
            peak = max(peak, float(np.abs(reference).max()))
            for part, candidate in zip(parts, candidates, strict=True):
                part.add(reference, log_p, candidate)
            flipped = candidates[1].argmax(axis=-1) != reference.argmax(axis=-1)
            if flipped.any() and V > 1:
                top = np.partition(reference[flipped], V - 2, axis=-1)[:, -2:]
                margins += (top[:, 1] - top[:, 0]).tolist()
    return ShapeStats(
        shape=(B, T),
        positions=positions,
        expected_rms=float(np.sqrt(sums[0] / count)),
        expected_max=peak,
        expected_spread=float(np.sqrt(sums[1] / count)),
        eager=parts[0].stats(count, positions),
        actual=parts[1].stats(count, positions),
        flip_margins=tuple(margins),
    )


class _Part:
    """Running sums of one implementation's error."""

    def __init__(self) -> None:
        self.square = self.max = self.kl = 0.0
        self.finite = True

    def add(self, reference: Logits, log_p: Logits, candidate: Logits) -> None:
        if not np.isfinite(candidate).all():
            self.finite = False
            return
        error = candidate - reference
        self.square += float(np.square(error).sum())
        self.max = max(self.max, float(np.abs(error).max()))
        self.kl += float((np.exp(log_p) * (log_p - _log_softmax(candidate))).sum())

    def stats(self, elements: int, positions: int) -> ErrorStats:
        if not self.finite:
            return ErrorStats(rms=np.inf, max=np.inf, kl_mean=np.inf, finite=False)
        # rounding alone may put a KL of nothing a hair below zero
        return ErrorStats(
            rms=float(np.sqrt(self.square / elements)), max=self.max, kl_mean=max(0.0, self.kl / positions), finite=True
        )


def _chunks(*logits: Logits) -> Iterator[list[npt.NDArray[np.float64]]]:
    V = logits[0].shape[-1]
    rows = max(1, CHUNK_ELEMENTS // V)
    flat = [array.reshape(-1, V) for array in logits]
    for start in range(0, len(flat[0]), rows):
        yield [array[start : start + rows].astype(np.float64) for array in flat]


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]
