"""The output of any head, by its own graph or by its definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.base import Backend
from gptexport_runtime.contract.heads import HEADS, LOGITS, Head
from gptexport_runtime.errors import InputError, shown
from gptexport_runtime.generate.cache import Cache
from gptexport_runtime.inputs import Batch

Floats = NDArray[np.float32]


def find_head(head: Head | str) -> Head:
    """The head itself, or that of this name.

    Raises:
        InputError: there is none.
    """
    found = HEADS.get(head) if isinstance(head, str) else head
    if not isinstance(found, Head):
        raise InputError(f"head is {shown(head)}; expected one of {', '.join(HEADS)}, or a Head.")
    return found


def run_head(backend: Backend, head: Head, batch: Batch, vocab_size: int) -> Floats:
    """The head's output of a batch; past a row's end it is whatever the padding gives.

    Raises:
        GPTExportError: the backend cannot open the graph, or fails.
    """
    if not backend.has(head):
        return _from_logits(backend, head, batch)
    if head.cached:
        return _from_empty_cache(backend, head, batch, vocab_size)
    graph = backend.open(head)
    out = np.empty(graph.output_shape(*batch.shape), np.float32)
    if out.size:
        graph.run(batch.ids, batch.lengths, out)
    return out


def _from_empty_cache(backend: Backend, head: Head, batch: Batch, vocab_size: int) -> Floats:
    B, T = batch.shape
    with Cache(backend.open_decoder(head), B, T, vocab_size) as cache, cache.in_use():
        return cache.feed([row[:length] for row, length in zip(batch.ids, batch.lengths, strict=True)])


def _from_logits(backend: Backend, head: Head, batch: Batch) -> Floats:
    """By definition, a few rows at a time, for bundles without a graph of the head."""
    graph = backend.open(LOGITS)
    B, T = batch.shape
    rows = max(1, backend.tokens_at_once // T)
    found = []
    for start in range(0, B, rows):
        ids, lengths = batch.ids[start : start + rows], batch.lengths[start : start + rows]
        logits = np.empty(graph.output_shape(*ids.shape), np.float32)
        graph.run(ids, lengths, logits)
        found.append(head.from_logits(logits, ids, lengths))
    return found[0] if len(found) == 1 else np.concatenate(found)
