"""What every tokenizer is, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptexport_runtime.errors import ArtifactError
from gptexport_runtime.files import read_small
from gptexport_runtime.text.streams import TextStream

MOST_BYTES = 1 << 29  # of a tokenizer's file


@dataclass(frozen=True)
class Tokenizer:
    """How a model's text becomes ids and its ids text."""

    name: str
    size: int  # ids are 0 ... size-1
    encode: Callable[[str], list[int]]  # with the token that begins a text, where the tokenizer puts one
    show: Callable[[int], str]  # one id for people; what is no text is shown as it can be
    stream: Callable[[], TextStream]
    piece: Callable[[int], bytes] | None = None  # an id's bytes, where they do not depend on its neighbours

    def decode(self, ids: Sequence[int]) -> str:
        """All of it at once; bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream()
        return stream.feed(ids) + stream.end()


def read_words(path: Path) -> bytes:
    """A tokenizer's file.

    Raises:
        ArtifactError: it cannot be read, or is too large to be one.
    """
    try:
        return read_small(path, MOST_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
