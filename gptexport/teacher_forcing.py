"""Feed known text through a key-value cache, piece by piece: how a cached head is checked, here and in the scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.generate.cache import Cache

Ids = NDArray[np.int64]


def feed_pieces(
    cache: Cache, rows: Sequence[Ids], ends: Sequence[Ids]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Feed each row in pieces.

    Args:
        cache: of as many rows, whatever they hold is kept.
        rows: the text of each row.
        ends: for each piece (B): up to which token of its row it reaches. A row that holds as much waits.

    Returns: after each piece that brings anything the rows that grew (n), and the logits (n,V) after their last token.
        The logits are overwritten by the next piece.
    """
    with cache.in_use():
        for end in ends:
            held = cache.lengths
            now = np.maximum(end, held)
            grown = np.flatnonzero(now > held)
            if len(grown):
                logits = cache.feed([row[a:b] for row, a, b in zip(rows, held, now, strict=True)])
                yield grown, logits[grown]
