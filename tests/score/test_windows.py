"""Windows are those of transformers' guide; shards and batches are a function of the windows alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gptexport.score.documents import Chunk
from gptexport.score.windows import Window, cut_batches, cut_shards, cut_windows


def chunks_of(documents: Sequence[Sequence[int]], piece: int) -> list[Chunk]:
    """Documents whose ids are 0, 1, 2 ..., in pieces."""
    found = []
    for lengths in documents:
        total, at = sum(lengths), 0
        for i, length in enumerate(lengths):
            ids = np.arange(at, at + length, dtype=np.int32)
            found.append(Chunk("d", ids, length, i == 0, i == len(lengths) - 1, piece))
            at += length
        assert at == total
    return found


def guide(length: int, block_size: int, stride: int) -> list[tuple[int, int, int]]:
    """(first id, end, how many of the last are targets) as the guide's loop has them, the first window's shift done."""
    found, before = [], 0
    for begin in range(0, length, stride):
        end = min(begin + block_size, length)
        found.append((begin, end, end - before - (begin == 0)))
        before = end
        if end == length:
            break
    return found


lengths = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(lengths, st.integers(2, 9), st.data())
def test_windows_are_those_of_the_guide(documents: list[list[int]], block_size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, block_size - 1))
    found = [window for window, _ in cut_windows(chunks_of(documents, 1), block_size, stride)]
    for number, pieces in enumerate(documents):
        mine = [w for w in found if w.document == number]
        n = sum(pieces)
        if n > 1:
            assert [(int(w.ids[0]), int(w.ids[-1]) + 1, w.scored) for w in mine] == guide(n, block_size, stride)
        scored = [i for w in mine if w.scored for i in w.ids[-w.scored :].tolist()]
        assert scored == list(range(1, n)), "each token but the first, once"
        assert [w.begin for w in mine if w.scored] == [int(w.ids[-w.scored]) for w in mine if w.scored]
        assert mine and sum(w.bytes or 0 for w in mine) == n


def window_of(length: int) -> Window:
    return Window(0, "d", 1, np.zeros(length, np.int32), max(length - 1, 0), None)


def test_bytes_that_are_not_known_stay_so() -> None:
    chunk = Chunk("d", np.arange(40, dtype=np.int32), None, True, True, 0)
    assert {window.bytes for window, _ in cut_windows([chunk], 8, 4)} == {None}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 50))
def test_shards_hold_every_window_in_order(sizes: list[int], tokens: int) -> None:
    windows = [window_of(size) for size in sizes]
    shards = list(cut_shards([(w, i) for i, w in enumerate(windows)], tokens))
    assert [id(w) for shard in shards for w in shard.windows] == [id(w) for w in windows]
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for shard in shards[:-1]:
        counts = [len(w.ids) + 1 for w in shard.windows]
        assert sum(counts) >= tokens > sum(counts[:-1])


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 50))
def test_batches_hold_what_is_scored_once_and_fit(sizes: list[int], tokens: int) -> None:
    windows = [window_of(size) for size in sizes]
    batches = list(cut_batches(windows, tokens))
    assert sorted(i for batch in batches for i in batch) == [i for i, size in enumerate(sizes) if size > 1]
    for batch in batches:
        longest = max(sizes[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= tokens
