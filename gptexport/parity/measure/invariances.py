"""What must not change: a logit when a later token does, or a neighbour, or the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle

import numpy as np

from gptexport.parity.measure.metrics import Logits
from gptexport.parity.measure.shapes import Shape
from gptexport.parity.measure.tokens import TokenSource
from gptexport_runtime import Session

Accepts = Callable[[int, int], bool]  # whether the session runs at (B,T)


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

    @property
    def passed(self) -> bool:
        return self.max_change <= self.allowed  # NaN fails


def measure_invariances(
    session: Session, source: TokenSource, shapes: Sequence[Shape], allowed: float, accepts: Accepts
) -> list[Invariance]:
    """A later token must not change an earlier logit, nor a neighbour or padding a row's."""
    T = max((T for B, T in shapes if B > 1), default=max(T for _, T in shapes))
    B = next(B for B in (3, *(B for B, t in shapes if t == T)) if accepts(B, T))
    ids = source.batch((B, T), seed=1)
    base = session.logits(ids)
    changes = {}
    if B > 1 and accepts(1, T):
        alone = [session.logits(ids[row : row + 1])[0] for row in range(B)]
        changes[Invariant.BATCH] = max(_change(*pair) for pair in zip(base, alone, strict=True))
    if T > 1:
        changed = []
        for start in sorted({1, T // 2, T - 1} - {0}):  # change everything from here on; what is before must stay
            other = ids.copy()
            other[:, start:] = (other[:, start:] + 1) % source.vocab_size
            changed.append(_change(base[:, :start], session.logits(other)[:, :start]))
        changes[Invariant.CAUSALITY] = max(changed)
    if T > 1 and B > 1:
        ragged = [row[:length] for row, length in zip(ids, cycle([T, T // 2, 1]), strict=False)]
        padded = session.logits([row.tolist() for row in ragged])
        changes[Invariant.PADDING] = max(
            _change(base[i, : len(row)], padded[i, : len(row)]) for i, row in enumerate(ragged)
        )
    return [
        Invariance(kind=kind, name=kind.value, max_change=change, allowed=allowed) for kind, change in changes.items()
    ]


def _change(before: Logits, after: Logits) -> float:
    return float(np.abs(after - before).max())
