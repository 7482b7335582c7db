"""What is scored: documents, as chunks of ids, and the files that they are in."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from gptexport.score.arrow import import_pyarrow
from gptexport_runtime.errors import InputError
from gptexport_runtime.files import open_regular
from gptexport_runtime.text import Tokenizer

Ids = NDArray[np.int32]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    lines: bool = False  # each line of a text file is a document
    field: str | None = None  # of JSONL and Parquet; None: the first usual one
    split_at: int | None = None  # a document of a token file begins at each of this id; None: the file is one
    begin_with: int | None = None  # an id put before every document, so that its first token is scored too


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which ids a model takes."""

    ids: int
    predicted: int  # of these it has a logit; another may only begin a document


@dataclass(frozen=True)
class Chunk:
    """Ids of one document, all of them or some."""

    name: str  # of the document: its file, and its line, row or number there
    ids: Ids  # (n)
    bytes: int | None  # of its text, in UTF-8; None: not known
    first: bool  # the document begins here
    last: bool  # and ends
    read: int  # bytes of all files that had been read by now


class Input:
    """One file, opened: a stream without its compression, and how far it has been read."""

    def __init__(self, path: Path, before: int) -> None:
        self.path = path
        self._before = before
        self._raw = cast(BinaryIO, open_regular(path))
        compression = COMPRESSIONS.get(path.suffix)
        stream: Any = import_pyarrow().input_stream(self._raw, compression=compression) if compression else self._raw
        self.stream: io.BufferedReader[Any] = io.BufferedReader(stream, 1 << 16)
        self._share: float | None = None

    @property
    def suffix(self) -> str:
        """What its name ends in, but for the compression."""
        name = self.path.with_suffix("") if self.path.suffix in COMPRESSIONS else self.path
        return name.suffix

    @property
    def read(self) -> int:
        """Bytes of the files that have been read, those before this one included."""
        if self._share is not None:
            return self._before + int(self._share * self.path.stat().st_size)
        return self._before + (0 if self._raw.closed else self._raw.tell())

    def at(self, share: float) -> None:
        """Say how much of it has been read, where the stream does not tell."""
        self._share = share

    def close(self) -> None:
        self.stream.close()
        self._raw.close()


@dataclass(frozen=True)
class Encoder:
    """What makes ids of a text, and counts the bytes of ids."""

    tokenizer: Tokenizer | None
    sizes: NDArray[np.int64] | None  # (V): the bytes of each id, where every id is some bytes

    def of_text(self, text: str, where: str) -> tuple[Ids, int]:
        if self.tokenizer is None:
            raise InputError(f"{where} is text, and the bundle has no tokenizer. Pass --tokenizer, or files of ids.")
        return np.array(self.tokenizer.encode(text), np.int32), len(text.encode())

    def bytes_of(self, ids: NDArray[Any]) -> int | None:
        """None where the tokenizer is not known, or its tokens' text depends on their neighbours."""
        return None if self.sizes is None else int(self.sizes[np.clip(ids, 0, len(self.sizes) - 1)].sum())


def encoder_of(tokenizer: Tokenizer | None) -> Encoder:
    if tokenizer is None or tokenizer.piece is None:
        return Encoder(tokenizer, None)
    return Encoder(tokenizer, np.array([*(len(tokenizer.piece(i)) for i in range(tokenizer.size)), 0], np.int64))
