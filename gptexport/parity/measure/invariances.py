"""What must not change: a logit when a later token does, or a neighbour, or the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle

import numpy as np

from gptexport.parity.measure.draws import Sides
from gptexport.parity.measure.metrics import Ids, Logits, largest_difference
from gptexport.parity.measure.reference import run_eager
from gptexport.parity.measure.shapes import Shape
from gptexport.parity.measure.tokens import TokenSource
from gptexport_runtime.inputs import PADDING_ID

Accepts = Callable[[int, int], bool]  # whether the session runs at (B,T)
ComputeRows = Callable[[Ids | Sequence[Ids]], Logits]  # rows of ids, of whatever lengths, -> (B,T,V)


class Invariant(StrEnum):
    """The kinds of change that are measured."""

    BATCH = "batch invariance"
    CAUSALITY = "causality"
    PADDING = "padding invariance"
    HEAD = "another head"  # what another graph of the bundle says, against its definition by the logits
    WEIGHT = "a stored weight"


@dataclass(frozen=True, kw_only=True)
class Invariance:
    """The largest change of what must not change: of logits; of a stored weight relative to its size."""

    kind: Invariant
    name: str  # for people
    max_change: float
    allowed: float
    eager_change: float | None = None  # the checkpoint's own, looked at where the artifact changes too much

    @property
    def passed(self) -> bool:
        return self.max_change <= self.allowed  # NaN fails


def measure_invariances(sides: Sides, shapes: Sequence[Shape], allowed: float, accepts: Accepts) -> list[Invariance]:
    """A later token must not change an earlier logit, nor a neighbour or padding a row's."""
    T = max((T for B, T in shapes if B > 1), default=max(T for _, T in shapes))
    B = next(B for B in (3, *(B for B, t in shapes if t == T)) if accepts(B, T))
    shape, beside = (B, T), accepts(1, T)
    found = [
        Invariance(kind=kind, name=kind.value, max_change=change, allowed=allowed)
        for kind, change in _changes(sides.session.logits, sides.source, shape, beside).items()
    ]
    if all(invariance.passed for invariance in found):
        return found
    own = _changes(lambda rows: run_eager(sides.eager, _padded(rows)), sides.source, shape, beside)
    return [i if i.passed else replace(i, eager_change=own[i.kind]) for i in found]


def _changes(compute: ComputeRows, source: TokenSource, shape: Shape, beside: bool) -> dict[Invariant, float]:
    """The largest change of each kind. `beside`: a row can be computed without others."""
    B, T = shape
    ids = source.batch(shape, seed=1)
    base = compute(ids)
    changes = {}
    if B > 1 and beside:
        alone = [compute(ids[row : row + 1])[0] for row in range(B)]
        changes[Invariant.BATCH] = max(largest_difference(*pair) for pair in zip(base, alone, strict=True))
    if T > 1:
        changed = []
        for start in sorted({1, T // 2, T - 1} - {0}):  # change everything from here on; what is before must stay
            other = ids.copy()
            other[:, start:] = (other[:, start:] + 1) % source.vocab_size
            changed.append(largest_difference(base[:, :start], compute(other)[:, :start]))
        changes[Invariant.CAUSALITY] = max(changed)
    if T > 1 and B > 1:
        ragged = [row[:length] for row, length in zip(ids, cycle([T, T // 2, 1]), strict=False)]
        padded = compute(ragged)
        changes[Invariant.PADDING] = max(
            largest_difference(base[i, : len(row)], padded[i, : len(row)]) for i, row in enumerate(ragged)
        )
    return changes


def _padded(rows: Ids | Sequence[Ids]) -> Ids:
    ids = np.full((len(rows), max(len(row) for row in rows)), PADDING_ID, np.int64)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    return ids
