"""A bundle's other graphs must say what its logits graph says: that one is compared with the checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gptexport_runtime import Session
from gptexport_runtime.contract import GRAPH_LAST, GRAPH_SCORE

from gptexport.parity.measured import Measured
from gptexport.parity.tokens import Ids, TokenSource
from gptexport.parity.verdict import Invariance


def measure_heads(measured: Measured, session: Session, *, tokens: Ids | None = None) -> Measured:
    """Add how far `last` and `score` are from the logits, where the bundle has them.

    Args:
        session: of the same bundle. Another than that of the measurements may hold its graphs in less memory.
    """
    kinds = session.manifest.graphs if session.manifest else {}
    allowed = next((i.allowed for i in measured.invariances if i.name == "batch invariance"), None)
    if allowed is None or not {GRAPH_LAST, GRAPH_SCORE} & set(kinds):
        return measured
    B, T = next(s.shape for s in sorted(measured.stats, key=lambda s: -s.shape[0] * (s.shape[1] > 1)))
    ids = TokenSource(session.config.vocab_size, tokens).batch((B, T), seed=2)
    logits = session.logits(ids).astype(np.float64)
    found = []
    if GRAPH_LAST in kinds:
        ragged = [row[: T - number % T].tolist() for number, row in enumerate(ids)]
        expected = np.stack([logits[number, len(row) - 1] for number, row in enumerate(ragged)])
        change = float(np.abs(session.last_logits(ragged) - expected).max())
        found.append(Invariance(name="last against logits", max_change=change, allowed=allowed))
    if GRAPH_SCORE in kinds and T > 1:
        top = logits.max(axis=-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        expected = np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
        change = float(np.abs(session.score(ids).logprobs - expected).max())
        found.append(Invariance(name="score against logits", max_change=change, allowed=2 * allowed))
    return replace(measured, invariances=(*measured.invariances, *found))
