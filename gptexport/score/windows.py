"""Windows of documents that are longer than the context, shards of windows, and batches of a shard.

As in transformers' guide to the perplexity of models with a fixed length: windows begin `stride` tokens apart, and each
scores the tokens that no earlier one has. Every token but a document's first is scored exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gptexport.score.documents import Chunk, Ids


@dataclass(frozen=True)
class Window:
    """Ids that are fed together, and which of them are scored."""

    document: int  # number of the document, over all files
    name: str
    begin: int  # number, in its document, of the first token that is scored
    ids: Ids  # (n), n at most block_size
    scored: int  # the last so many tokens
    bytes: int | None  # of the document's text that no earlier window has counted; None: not known


@dataclass(frozen=True)
class Shard:
    """Windows that are scored and written together: the unit of work, and of what is done again after a kill."""

    number: int
    windows: list[Window]
    read: int  # bytes of the input up to here

    @property
    def computed(self) -> int:
        """Tokens that are fed, context included."""
        return sum(len(window.ids) for window in self.windows if window.scored)

    @property
    def scored(self) -> int:
        return sum(window.scored for window in self.windows)

    @property
    def identity(self) -> dict[str, int]:
        """What tells whether a part that was written before is of these windows."""
        first = self.windows[0]
        return {
            "shard": self.number,
            "document": first.document,
            "begin": first.begin,
            "windows": len(self.windows),
            "scored": self.scored,
        }


def cut_windows(chunks: Iterable[Chunk], block_size: int, stride: int) -> Iterator[tuple[Window, int]]:
    """The windows of all documents in order, and how much of the input had been read then.

    A document without a token to score, of one token or none, is a window that scores nothing.

    Args:
        stride: 1 to block_size - 1. A window's first `block_size - stride` tokens or more are context alone.
    """
    document, held, start, scored_to, size = -1, np.zeros(0, np.int32), 0, 1, None
    for chunk in chunks:
        if chunk.first:
            document, held, start, scored_to, size = document + 1, chunk.ids[:0], 0, 1, 0
        held = np.concatenate([held, chunk.ids]) if len(held) else chunk.ids
        size = None if chunk.bytes is None or size is None else size + chunk.bytes
        while len(held) > block_size or chunk.last:
            ids = held[:block_size]
            end = start + len(ids)
            yield Window(document, chunk.name, scored_to, ids, max(end - scored_to, 0), size), chunk.read
            scored_to = end
            size = None if size is None else 0
            if len(held) <= block_size:
                break
            held, start = held[stride:], start + stride


def cut_shards(windows: Iterable[tuple[Window, int]], tokens: int) -> Iterator[Shard]:
    """Shards of `tokens` tokens or slightly more, the last one less. A window counts one more than it has."""
    number, held, count, read = 0, list[Window](), 0, 0
    for window, read in windows:
        held.append(window)
        count += len(window.ids) + 1
        if count >= tokens:
            yield Shard(number, held, read)
            number, held, count = number + 1, [], 0
    if held:
        yield Shard(number, held, read)


def cut_batches(windows: list[Window], tokens: int) -> Iterator[list[int]]:
    """Which windows to feed together: alike in length, the longest first, rows × longest at most `tokens`."""
    order = sorted((i for i, window in enumerate(windows) if window.scored), key=lambda i: -len(windows[i].ids))
    at = 0
    while at < len(order):
        rows = max(1, tokens // len(windows[order[at]].ids))
        yield order[at : at + rows]
        at += rows
