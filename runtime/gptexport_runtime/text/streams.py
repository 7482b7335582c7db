"""Ids in as they come, text out as soon as it is certain, and all together what decoding them at once gives."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what is no text
LONGEST_CUT = 3  # a character has up to 4 bytes: what is cut of it decodes to at most so many UNKNOWN
CONTEXT, LIMIT = 16, 64  # ids that a window keeps behind a place where it is cut, and ids that it may grow to


class TextStream(Protocol):
    """An id that is none becomes U+FFFD."""

    def feed(self, ids: Sequence[int]) -> str: ...

    def end(self) -> str:
        """What is left: half a character becomes U+FFFD. The next `feed` begins anew."""
        ...


class Pieces:
    """Each id is some bytes, whatever its neighbours are."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Sequence[int]) -> str:
        return "".join(self._decoder.decode(self._piece(i)) for i in ids)

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class Window:
    """Ids whose text depends on their neighbours: the last of them are decoded again with each that comes.

    Text that may still change waits: half a character, and a run of byte tokens. Such a run is text only as a whole:
    one byte in it that is none makes every byte of it U+FFFD (ByteFallback in tokenizers).
    """

    def __init__(
        self, decode: Callable[[list[int]], str], known: Callable[[int], bool], byte_of: Callable[[int], int | None]
    ) -> None:
        """Take the decoder; whether an id has a token; and the byte that a token stands for in a run, if it does."""
        self._decode = decode
        self._known = known
        self._byte_of = byte_of
        self._ids: list[int] = []
        self._told = 0  # how many characters of their text have been given out
        self._run = bytearray()  # of the byte tokens at their end
        self._limit = LIMIT

    def feed(self, ids: Sequence[int]) -> str:
        return "".join(self._take(i) for i in ids)

    def end(self) -> str:
        left = self._left()
        self._begin([])
        return left

    def _take(self, one: int) -> str:
        if not self._known(one):
            return self._skip()
        self._ids.append(one)
        byte = self._byte_of(one)
        if byte is None:
            self._run.clear()
        else:
            self._run.append(byte)
            if _may_become_text(self._run):
                return ""
        text = self._decode(self._ids)
        cut = 0 if byte is not None else min(len(text) - len(text.rstrip(UNKNOWN)), LONGEST_CUT)
        new = text[self._told : len(text) - cut]
        self._told += len(new)
        if len(self._ids) > self._limit and not self._run:
            self._shorten(text)
        return new

    def _skip(self) -> str:
        """An id that has no token: what waits is given out, and what follows does not begin a text."""
        left = self._left()
        self._begin([next((i for i in reversed(self._ids) if self._byte_of(i) is None), None)])
        return left + UNKNOWN

    def _left(self) -> str:
        return self._decode(self._ids)[self._told :]

    def _begin(self, context: list[int | None]) -> None:
        self._ids = [i for i in context if i is not None]
        self._told = len(self._decode(self._ids)) if self._ids else 0
        self._run.clear()
        self._limit = LIMIT

    def _shorten(self, text: str) -> None:
        """Forget the oldest ids, if the last ones alone read as they do behind all of them; else try again later."""
        plain = [at for at, i in enumerate(self._ids) if self._byte_of(i) is None]
        joint = next((at for at in reversed(plain) if at <= len(self._ids) - CONTEXT), None)
        start = next((at for at in reversed(plain) if joint is not None and at <= joint - CONTEXT), None)
        if joint is not None and start is not None:
            before, kept = self._decode(self._ids[:joint]), self._decode(self._ids[start:])
            behind = self._decode(self._ids[start:joint])
            if len(before) <= self._told and text[len(before) :] == kept[len(behind) :] and text.startswith(before):
                self._told += len(behind) - len(before)
                self._ids = self._ids[start:]
                self._limit = LIMIT
                return
        self._limit = 2 * len(self._ids)


class StoppingStream:
    """A stream that ends before the first of some texts. What may be the beginning of one waits."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self.stopped = False  # one of the texts came; nothing after it is given out
        self._stream = stream
        self._stops = stops
        self._waiting = ""

    def feed(self, ids: Sequence[int]) -> str:
        return self._take(self._stream.feed(ids))

    def end(self) -> str:
        text = self._take(self._stream.end()) + self._waiting
        self._waiting = ""
        return text

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._waiting + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        begun = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        self.stopped = bool(found)
        cut = min(found) if found else len(text) - max(begun, default=0)
        self._waiting = "" if found else text[cut:]
        return text[:cut]


def _may_become_text(run: bytearray) -> bool:
    """Whether these bytes are UTF-8 so far, the last character perhaps not whole."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(bytes(run))
    except UnicodeDecodeError:
        return False
    return True
