"""A bundle's other heads must say what its logits say: those are compared with the checkpoint.

What a head says is its definition (`Head.from_logits`), so one that is added is checked without a line in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptexport.parity.measure.invariances import Invariance, Invariant
from gptexport.parity.measure.metrics import Ids, Logits, largest_difference, mean_kl
from gptexport.teacher_forcing import feed_pieces
from gptexport_runtime import Session
from gptexport_runtime.contract.heads import LOGITS, Head
from gptexport_runtime.contract.names import LENGTHS
from gptexport_runtime.inputs import PADDING_ID

SINGLE_STEPS = 32  # of one token each, in a cached head
SIGNS = 3  # draws of which logits rounding moves up, and which down


def measure_heads(
    session: Session, heads: Sequence[Head], batches: Sequence[Ids], allowed: float, allowed_kl: float | None = None
) -> list[Invariance]:
    """How far each head is from its definition, by the session's own logits.

    Args:
        session: has a graph for each of `heads`. It may hold them in less memory than that of other measurements.
        batches: ids, each (B,T), of which a head without a cache sees the first alone. For heads that take lengths it
            is cut into rows of unequal length.
        allowed: how far rounding may move a logit.
        allowed_kl: how far, in nats, the predictions of a head with a cache may be from those of the whole text: of
            quantized weights, whose logits no rounding explains. None: that is not judged.
    """
    others = [head for head in heads if head is not LOGITS]
    if not others:
        return []
    logits = [session.logits(ids) for ids in batches]
    found = []
    for head in others:
        name = f"{head} against logits"
        if head.cached:
            pieces = [cached_change(session, head, *of) for of in zip(batches, logits, strict=True)]
            change = float(np.max([each.change for each in pieces]))  # NaN stays NaN
            if allowed_kl is not None:
                kl = float(np.max([each.kl for each in pieces]))
                found.append(Invariance(kind=Invariant.HEAD, name=f"{name}, KL", max_change=kl, allowed=allowed_kl))
        else:
            change = head_change(session, head, batches[0], logits[0])
        bound = allowed * _sensitivity(head, batches[0], logits[0], allowed)
        found.append(Invariance(kind=Invariant.HEAD, name=name, max_change=change, allowed=bound))
    return found


@dataclass(frozen=True)
class Stepped:
    """How far the logits of single steps are from those of the whole text."""

    change: float  # the largest
    kl: float  # in nats, the mean of those steps, of the middle or the end, where it is worst


def head_change(session: Session, head: Head, ids: Ids, logits: Logits) -> float:
    """The largest difference of a head's output from its definition, at ids (B,T) with logits (B,T,V)."""
    ids, lengths = _ragged(ids) if LENGTHS in head.signature.inputs else (ids, _whole(ids))
    expected = head.from_logits(logits, ids, lengths).astype(np.float64)
    head.hide_padding(expected, lengths)
    actual = session.run(head, [row[:length] for row, length in zip(ids, lengths, strict=True)])
    return largest_difference(expected, actual)  # of one token nothing is scored


def cached_change(session: Session, head: Head, ids: Ids, logits: Logits, *, single: int = SINGLE_STEPS) -> Stepped:
    """Like `head_change`: prompts of mixed lengths, then single tokens, then longer pieces, then single tokens again.

    Args:
        single: how many steps of one token, in the middle of rows and at their end each.
    """
    B, T = ids.shape
    first = np.maximum(1, (T - single) // 2 - np.arange(B))
    middle = [np.minimum(first + step, T) for step in range(single + 1)]
    last = max(int(middle[-1].max()), T - single)
    pieces = [np.full(B, end) for end in np.linspace(T // 2, last, 4, dtype=int)[1:]]
    changes, divergences = [0.0], [0.0]
    with session.cache(rows=B, capacity=T) as cache:
        for ends in (middle, pieces, [np.full(B, end) for end in range(last + 1, T + 1)]):
            lost = []
            for grown, actual in feed_pieces(cache, list(ids), ends):
                expected = head.from_logits(logits, ids, cache.lengths)[grown]
                changes.append(largest_difference(expected, actual))
                lost.append(mean_kl(expected, actual))
            divergences += [float(np.mean(lost))] if lost else []
    return Stepped(float(np.max(changes)), float(np.max(divergences)))


def _sensitivity(head: Head, ids: Ids, logits: Logits, change: float) -> float:
    """How many times as much a head's output may change as each logit does: 1 where it is logits.

    Of a log-probability twice as much, its own logit going up and all others down; signs drawn at random move the
    others little, so what they show is doubled.
    """
    if head.signature.output == LOGITS.signature.output or not change > 0:
        return 1.0
    draw = np.random.default_rng(0)
    lengths = _whole(ids)
    base = head.from_logits(logits, ids, lengths)
    found = [1.0]
    for _ in range(SIGNS):
        moved = (logits + change * draw.choice([-1.0, 1.0], size=logits.shape)).astype(np.float32)
        found.append(largest_difference(base, head.from_logits(moved, ids, lengths)) / change)
    return 2 * max(found)


def _ragged(ids: Ids) -> tuple[Ids, Ids]:
    """Rows of T, T - 1, … tokens, padded."""
    B, T = ids.shape
    lengths = T - np.arange(B) % T
    return np.where(np.arange(T) < lengths[:, None], ids, PADDING_ID), lengths


def _whole(ids: Ids) -> Ids:
    B, T = ids.shape
    return np.full(B, T, np.int64)
