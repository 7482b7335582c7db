"""A key-value cache: what a model has computed of some rows of text, so that going on costs a token, not all of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.base import CacheMemory, Decoder
from gptexport_runtime.contract.model import LARGEST
from gptexport_runtime.errors import ContextLengthError, ExecutionError, InputError, SessionError, shown
from gptexport_runtime.inputs import PADDING_ID, is_count

Ids = NDArray[np.int64]


class Cache:
    """B rows of text that a model has read; `Session.cache` makes one.

    It holds the ids too, so that whoever continues them computes only what is new: `generate(ids, cache=cache)` takes
    the whole text, and finds out itself how much of it is here. A cache of another text costs time, never correctness;
    one of another session is refused.

    One call at a time may use it. Freed by `close`, by leaving a `with`, or with the last reference.
    """

    def __init__(
        self,
        decoder: Decoder,
        batch: int,
        capacity: int,
        vocab_size: int,
        *,
        memory: CacheMemory | None = None,
        owner: object = None,
    ) -> None:
        """Empty rows.

        Args:
            capacity: the most tokens a row can hold.
            memory: of as many rows; None: it is allocated.
            owner: whose model this is of.
        """
        self.capacity = capacity
        self._decoder = decoder
        self._owner = owner
        self._vocab_size = vocab_size
        self._busy = threading.Lock()
        try:
            self._memory: CacheMemory | None = memory or decoder.allocate(batch, capacity)
            self._ids = np.full((batch, capacity), PADDING_ID, np.int64)
            self._lengths = np.zeros(batch, np.int64)
            self._step = _StepArrays(batch, vocab_size)
        except (MemoryError, ValueError, OverflowError) as error:  # numpy's, of a shape that no memory holds
            raise ExecutionError(
                f"there is no memory for a cache of {shown(batch)} rows of up to {capacity} tokens: {error}. Ask for "
                "fewer rows, or a smaller capacity."
            ) from error

    @property
    def batch(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Ids:
        """(B): how many tokens of each row are held."""
        return self._lengths.copy()

    @property
    def ids(self) -> list[Ids]:
        """The tokens of each row."""
        return [row[:length].copy() for row, length in zip(self._ids, self._lengths, strict=True)]

    def is_of(self, owner: object) -> bool:
        """Is what it holds of this owner's model?"""
        return self._owner is owner

    def rewind(self, lengths: int | Sequence[int] | Ids) -> None:
        """Forget all but the first `lengths` tokens of every row, or of each.

        Raises:
            InputError: negative, more than a row holds, or not one number a row.
        """
        with self.in_use():
            try:
                wanted = np.asarray(lengths)
            except (ValueError, OverflowError):  # ragged, or past 64 bits
                wanted = np.asarray(None)
            if wanted.dtype.kind not in "iu" or wanted.shape not in ((), (self.batch,)):
                raise InputError(
                    f"lengths is {shown(lengths)}; expected an int, or one for each of the {self.batch} rows."
                )
            if (wanted < 0).any() or (wanted > self._lengths).any():
                raise InputError(f"lengths is {wanted.tolist()}; expected 0 to what is held, {self._lengths.tolist()}.")
            self._lengths[:] = wanted

    def fork(self, copies: int) -> Cache:
        """A cache of its own with every row there `copies` times, side by side: one prompt, many continuations."""
        if not is_count(copies) or copies > LARGEST:
            raise InputError(f"copies is {shown(copies)}; expected an integer from 1 to {LARGEST:,}.")
        with self.in_use() as memory:
            try:
                rows = np.repeat(np.arange(self.batch), copies)
                copy = memory.fork(rows, int(self._lengths.max()))
            except (MemoryError, ValueError) as error:
                raise ExecutionError(f"there is no memory for {self.batch * copies:,} rows: {error}.") from error
            fork = Cache(self._decoder, len(rows), self.capacity, self._vocab_size, memory=copy, owner=self._owner)
            fork._ids, fork._lengths = self._ids[rows], self._lengths[rows]
            return fork

    def close(self) -> None:
        """Free the memory. Closing twice is fine."""
        self._memory = None

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._memory is None else f"lengths {self._lengths.tolist()}"
        return f"<Cache of {self.batch} rows of up to {self.capacity} tokens, {state}>"

    @contextmanager
    def in_use(self) -> Iterator[CacheMemory]:
        """Mark the cache as taken by one call.

        Raises:
            SessionError: another call has it, or it is closed.
        """
        if not self._busy.acquire(blocking=False):
            raise SessionError("this cache is in use by another call. Give each call one of its own: cache.fork(1).")
        try:
            yield self._open()
        finally:
            self._busy.release()

    def _open(self) -> CacheMemory:
        memory = self._memory
        if memory is None:  # another thread may close it in the middle of a call
            raise SessionError("this cache is closed. Make another with Session.cache().")
        return memory

    # What follows is for `generate`, which holds the cache `in_use`.

    def keep_prefix(self, rows: Sequence[Ids]) -> list[Ids]:
        """Rewind each row to what it shares with `rows`, but for the last token: it has to be fed, for its logits.

        Returns: what has to be fed of each row, 1 or more tokens.
        """
        for b, row in enumerate(rows):
            shared = min(int(self._lengths[b]), len(row) - 1)
            different = np.flatnonzero(self._ids[b, :shared] != row[:shared])
            self._lengths[b] = int(different[0]) if different.size else shared
        return [row[length:] for row, length in zip(rows, self._lengths, strict=True)]

    def feed(self, new: Sequence[Ids]) -> NDArray[np.float32]:
        """Append the new tokens of each row; a row without any stays as it is.

        Returns: float32 (B,V), the logits after each row's last token; overwritten by the next call. Rows that are
        empty and stay so have none, and hold what they held.

        Raises:
            ContextLengthError: a row does not fit.
        """
        counts = np.array([len(row) for row in new], np.int64)
        if (self._lengths + counts > self.capacity).any():
            b = int(np.argmax(self._lengths + counts > self.capacity))
            raise ContextLengthError(
                f"row {b} of the cache holds {self._lengths[b]} tokens and would get {counts[b]} more; its capacity is "
                f"{self.capacity}. Rewind it, or make a larger one with Session.cache(capacity=...)."
            )
        if counts.max() <= 1 and (self._lengths + counts).all():
            return self._feed_one_each(new, counts)
        logits = self._step.logits
        if counts.all() and not self._lengths.any():
            together = max(1, self._decoder.tokens_at_once // int(counts.max()))
            for start in range(0, self.batch, together):
                rows = slice(start, min(start + together, self.batch))
                self._feed_rows(rows, new[rows], logits[rows])
        else:
            for b in np.flatnonzero(counts).tolist():
                self._feed_rows(slice(b, b + 1), new[b : b + 1], logits[b : b + 1])
        return logits

    def _feed_one_each(self, new: Sequence[Ids], counts: Ids) -> NDArray[np.float32]:
        """One token a row. A row without a new one repeats its last, which changes nothing."""
        memory, step = self._open(), self._step
        for b, row in enumerate(new):
            if len(row):
                self._ids[b, self._lengths[b]] = row[0]
        lengths = self._lengths + counts
        np.subtract(lengths, 1, out=step.past)
        step.ids[:, 0] = self._ids[step.rows, step.past]
        memory.run(slice(0, self.batch), step.ids, step.ones, step.past, step.logits)
        self._lengths = lengths
        return step.logits

    def _feed_rows(self, rows: slice, new: Sequence[Ids], out: NDArray[np.float32]) -> None:
        """Prompts of rows that are all empty, or more tokens of a single row."""
        memory = self._open()
        lengths = np.array([len(row) for row in new], np.int64)
        ids = np.full((len(new), int(lengths.max())), PADDING_ID, np.int64)
        for b, row in enumerate(new):
            ids[b, : len(row)] = row
        past = self._lengths[rows].copy()
        memory.run(rows, ids, lengths, past, out)
        for b, row in enumerate(new):
            self._ids[rows.start + b, past[b] : past[b] + len(row)] = row
        self._lengths[rows] += lengths

    def holds(self, row: int) -> int:
        """How many tokens of a row are held."""
        return int(self._lengths[row])

    def forget(self, row: int) -> None:
        """Empty a row."""
        self._lengths[row] = 0

    def drop_rows(self, keep: Ids) -> None:
        """Go on with the rows `keep` alone, in ascending order."""
        self._open().keep(keep, int(self._lengths.max()))
        self._ids, self._lengths = self._ids[keep], self._lengths[keep]
        self._step = _StepArrays(len(keep), self._vocab_size)


class _StepArrays:
    """What a single step passes to the graph: the same memory each time."""

    def __init__(self, batch: int, vocab_size: int) -> None:
        self.rows = np.arange(batch)
        self.ids = np.zeros((batch, 1), np.int64)
        self.past = np.zeros(batch, np.int64)
        self.ones = np.ones(batch, np.int64)
        self.logits = np.zeros((batch, vocab_size), np.float32)
