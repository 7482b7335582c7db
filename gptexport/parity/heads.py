"""A bundle's other graphs must say what its logits graph says: that one is compared with the checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gptexport.parity.measured import Measured
from gptexport.parity.tokens import Ids, TokenSource
from gptexport.parity.verdict import Invariance
from gptexport_runtime import Session
from gptexport_runtime.contract import heads

Floats = npt.NDArray[np.floating]


def measure_heads(measured: Measured, session: Session, *, tokens: Ids | None = None) -> Measured:
    """Add how far `last`, `score` and `decode` are from the logits, where the bundle has them.

    Args:
        session: of the same bundle. Another than that of the measurements may hold its graphs in less memory.
    """
    kinds = session.manifest.graphs if session.manifest else {}
    allowed = next((i.allowed for i in measured.invariances if i.name == "batch invariance"), None)
    if allowed is None or not {heads.LAST.name, heads.SCORE.name, heads.DECODE.name} & set(kinds):
        return measured
    B, T = next(s.shape for s in sorted(measured.stats, key=lambda s: -s.shape[0] * (s.shape[1] > 1)))
    ids = TokenSource(session.config.predicted_ids, tokens).batch((B, T), seed=2)
    logits = session.logits(ids).astype(np.float64)
    found = []
    if heads.LAST.name in kinds:
        ragged = [row[: T - number % T].tolist() for number, row in enumerate(ids)]
        expected = np.stack([logits[number, len(row) - 1] for number, row in enumerate(ragged)])
        change = float(np.abs(session.last_logits(ragged) - expected).max())
        found.append(Invariance(name="last against logits", max_change=change, allowed=allowed))
    if heads.SCORE.name in kinds and T > 1:
        top = logits.max(axis=-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        expected = np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
        change = float(np.abs(session.score(ids).logprobs - expected).max())
        found.append(Invariance(name="score against logits", max_change=change, allowed=2 * allowed))
    if heads.DECODE.name in kinds:
        change = decode_change(session, ids, logits)
        found.append(Invariance(name="decode against logits", max_change=change, allowed=allowed))
    return replace(measured, invariances=(*measured.invariances, *found))


def decode_change(session: Session, ids: Ids, logits: Floats, *, single: int = 32) -> float:
    """The largest |decode − logits|: prompts of mixed lengths, then single tokens, then longer pieces to the end.

    Args:
        ids: (B,T), with logits (B,T,V).
        single: how many steps of one token.
    """
    B, T = ids.shape
    first = np.maximum(1, (T - single) // 2 - np.arange(B))
    ends = [np.minimum(first + step, T) for step in range(single + 1)]
    ends += [np.full(B, end) for end in np.linspace(T // 2, T, 4, dtype=int)[1:]]
    worst, held = 0.0, np.zeros(B, np.int64)
    with session.cache(rows=B, capacity=T) as cache, cache.in_use():
        for end in ends:
            now = np.maximum(end, held)
            found = cache.feed([row[a:b] for row, a, b in zip(ids, held, now, strict=True)])
            fed = np.flatnonzero(now > held)
            if len(fed):
                worst = max(worst, float(np.abs(found[fed] - logits[fed, now[fed] - 1]).max()))
            held = now
    return worst
