"""Generation without a graph that keeps keys and values: the whole text is computed again for every token.

Right for any forward, whatever looks across its positions, and slow: a token costs what a prompt of its length costs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.inputs import PADDING_ID, Batch

Ids = NDArray[np.int64]
LastLogits = Callable[[Batch], NDArray[np.float32]]  # (B,V) of each row's last token


class RecomputingDecoder:
    """See backends/base.Decoder. What its memory holds of a text is its ids."""

    def __init__(self, last_logits: LastLogits, tokens_at_once: int) -> None:
        self.last_logits = last_logits
        self.tokens_at_once = tokens_at_once

    def allocate(self, rows: int, capacity: int) -> TextMemory:
        return TextMemory(self, np.full((rows, capacity), PADDING_ID, np.int64))


class TextMemory:
    """See backends/base.CacheMemory."""

    def __init__(self, decoder: RecomputingDecoder, ids: Ids) -> None:
        self._decoder = decoder
        self._ids = ids  # (B,S)

    def run(self, rows: slice, ids: Ids, lengths: Ids, past_lengths: Ids, out: NDArray[np.float32]) -> None:
        held = self._ids[rows]
        totals = past_lengths + lengths
        for row, new, length, past, total in zip(held, ids, lengths, past_lengths, totals, strict=True):
            row[past:total] = new[:length]
        text = np.ascontiguousarray(held[:, : int(totals.max())])
        out[:] = self._decoder.last_logits(Batch(text, totals))

    def keep(self, rows: Ids, length: int) -> None:
        self._ids[: len(rows), :length] = self._ids[rows, :length]

    def fork(self, rows: Ids, length: int) -> TextMemory:
        return TextMemory(self._decoder, self._ids[rows])
