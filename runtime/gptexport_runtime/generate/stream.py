"""Generation: feed the cache, choose a token for every row, feed those, until the rows have ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.contract.model import LARGEST
from gptexport_runtime.errors import ContextLengthError, InputError, SessionError, shown
from gptexport_runtime.generate.cache import Cache
from gptexport_runtime.generate.sampling import Sampling, choose, random_streams
from gptexport_runtime.inputs import Batch, is_count, items_of

Ids = NDArray[np.int64]
AT_FIRST = 4096  # tokens that a row has room for, before it is made longer
ENDED = -1  # in place of a token, of a row that has ended


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a row ends.

    Raises:
        InputError: an option is not as below.
        ContextLengthError: a row would grow past block_size, and may not slide.
    """

    block_size: int
    vocab_size: int
    max_new_tokens: int | None = None  # None: until the row has block_size tokens
    stop: Collection[int] = ()  # ids that end a row; they are not part of it
    takes: int | None = None  # how many ids the model takes, where it is not vocab_size; an id past them ends a row
    slide: bool = False  # at block_size, and past it, a row goes on from its last half, which is read anew

    def __post_init__(self) -> None:
        count = self.max_new_tokens
        if count is not None and (not is_count(count) or count > LARGEST):
            raise InputError(f"max_new_tokens is {shown(count)}; expected an integer from 1 to {LARGEST:,}, or None.")
        if self.slide and count is None:
            raise InputError("slide has no end of its own: pass max_new_tokens too.")
        expected = f"expected token ids, 0 to {self.vocab_size - 1}"
        stop = items_of(self.stop)
        if stop is None:
            raise InputError(f"stop is {shown(self.stop)}; {expected}, in a list or set.")
        wrong = [i for i in stop if not is_count(i, least=0) or i >= self.vocab_size]
        if wrong:
            raise InputError(f"stop holds {shown(wrong[0])}; {expected}.")
        object.__setattr__(self, "stop", frozenset(map(int, stop)))

    def ends(self, token: int) -> bool:
        """Whether a row ends here, without this token."""
        return token in self.stop or (self.takes is not None and token >= self.takes)

    def new_tokens(self, lengths: Ids) -> Ids:
        """(B): the most that each row of `lengths` (B) may get."""
        room = self.block_size - lengths
        if self.max_new_tokens is None:
            return room
        if not self.slide and (room < self.max_new_tokens).any():
            b = int(np.argmax(lengths))
            raise ContextLengthError(
                f"row {b} has {lengths[b]} tokens and would get {self.max_new_tokens} more; block_size is "
                f"{self.block_size}. Ask for fewer, or pass slide=True (--slide), which goes on from the last half of "
                "the text."
            )
        return np.full_like(lengths, self.max_new_tokens)


def stream_tokens(
    make_cache: Callable[[int, int], Cache],
    batch: Batch,
    limits: Limits,
    sampling: Sampling,
    seed: int | Sequence[int],
    cache: Cache | None,
) -> Generator[Ids, None, None]:
    """Check everything now; the iterator then computes a step each time it is asked.

    Args:
        make_cache: of (rows, capacity); its cache is freed when the iterator ends or is closed.
        cache: the caller's own, which is used instead and kept.

    Returns: an iterator of int64 (B), each row's next token or ENDED.
    """
    if cache is not None and not isinstance(cache, Cache):
        raise InputError(f"cache is {shown(cache)}; expected one that Session.cache made, or None.")
    B = len(batch.ids)
    wanted = limits.new_tokens(batch.lengths)
    streams = random_streams(seed, B)
    rows = [_Row(row[:length], int(count)) for row, length, count in zip(batch.ids, batch.lengths, wanted, strict=True)]
    if cache is not None and cache.batch != B:
        raise InputError(f"the cache has {cache.batch} rows and ids {B}; expected as many. See Cache.fork.")
    # the last token of a row is never fed
    most = min(limits.block_size, int((batch.lengths + np.maximum(wanted, 1)).max()) - 1)
    if cache is not None and cache.capacity < most:
        raise InputError(f"the cache has room for {cache.capacity} tokens a row; {most} are needed.")
    if cache is not None:
        return Steps(_steps(cache, rows, limits, sampling, streams))
    return Steps(_steps_of_own(lambda: make_cache(B, most), rows, limits, sampling, streams))


class Steps(Generator[Ids, None, None]):
    """The steps of one generation, which one thread at a time may ask for."""

    def __init__(self, steps: Generator[Ids, None, None]) -> None:
        self._steps = steps
        self._busy = threading.Lock()

    def send(self, value: None = None) -> Ids:
        with self._alone():
            return self._steps.send(value)

    def throw(self, *error: Any) -> Ids:
        with self._alone():
            return self._steps.throw(*error)

    def close(self) -> None:
        with self._alone():
            self._steps.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise SessionError("another thread is asking this iterator for a step. Give each thread one of its own.")
        try:
            yield
        finally:
            self._busy.release()


class _Row:
    """The text of a row: what it began with, and what it got."""

    def __init__(self, prompt: Ids, most: int) -> None:
        self.ids = np.empty(len(prompt) + min(most, AT_FIRST), np.int64)
        self.ids[: len(prompt)] = prompt
        self.length = len(prompt)
        self.left = most

    @property
    def text(self) -> Ids:
        return self.ids[: self.length]

    def append(self, token: int) -> None:
        if self.length == len(self.ids):
            self.ids = np.concatenate([self.ids, np.empty(min(self.left, len(self.ids)), np.int64)])
        self.ids[self.length] = token
        self.length += 1
        self.left -= 1


def _steps_of_own(
    make_cache: Callable[[], Cache],
    rows: list[_Row],
    limits: Limits,
    sampling: Sampling,
    streams: list[np.random.Generator],
) -> Generator[Ids, None, None]:
    with make_cache() as cache:
        yield from _steps(cache, rows, limits, sampling, streams, may_shrink=True)


def _steps(
    cache: Cache,
    rows: list[_Row],
    limits: Limits,
    sampling: Sampling,
    streams: list[np.random.Generator],
    may_shrink: bool = False,
) -> Generator[Ids, None, None]:
    """`may_shrink`: rows that have ended leave the cache, so that the others are faster."""
    with cache.in_use():
        alive = np.array([row.left > 0 for row in rows])
        held = np.arange(len(rows))  # which row each of the cache's is
        new = cache.keep_prefix([_context(row, limits) for row in rows])
        new = [ids if alive[b] else ids[:0] for b, ids in enumerate(new)]
        while alive.any():
            logits = cache.feed(new)
            active = np.flatnonzero(alive[held])
            chosen = choose(
                logits if len(active) == len(held) else logits[active],
                sampling,
                [streams[b] for b in held[active]],
                [rows[b].text for b in held[active]],
            )
            tokens = np.full(len(rows), ENDED, np.int64)
            for b, token in zip(held[active], chosen.tolist(), strict=True):
                if limits.ends(token):
                    alive[b] = False
                else:
                    rows[b].append(token)
                    tokens[b] = token
                    alive[b] = rows[b].left > 0
            yield tokens
            if may_shrink and not alive[held].all() and alive.any():
                keep = np.flatnonzero(alive[held])
                cache.drop_rows(keep)
                held = held[keep]
            new = [_next(cache, at, rows[b], limits) if alive[b] else rows[b].ids[:0] for at, b in enumerate(held)]


def _next(cache: Cache, at: int, row: _Row, limits: Limits) -> Ids:
    """What the cache's row has to be fed: the last token, or, at block_size, the last half of the text anew."""
    if cache.holds(at) < limits.block_size:
        return row.text[-1:]
    cache.forget(at)
    return _context(row, limits)


def _context(row: _Row, limits: Limits) -> Ids:
    """What the model is to read of a row's text: all of it; of one longer than block_size the last half of a block."""
    if row.length <= limits.block_size:
        return row.text
    return row.text[-max(1, limits.block_size // 2) :]
