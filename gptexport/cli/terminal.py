"""What may reach a terminal, and a stream in any state: of any encoding, closed, full, or without a reader.

Names in a checkpoint, a bundle or an engine are anybody's text. An escape sequence among them could retitle a window,
move the cursor over what was printed, or hide it, so that no control character of theirs is printed as it is.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

# C0 but tab and newline, DEL, C1, line and paragraph separators, marks that turn the direction of text, and halves of
# surrogate pairs, which no encoding has.
CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
PLAIN = {"…": "...", "×": "x", "─": "-", "–": "-", "±": "+-", "≤": "<=", "→": "->", "’": "'"}  # in ASCII
ERRORS = "gptexport.plain"


def in_color() -> bool | None:
    """False where nobody wants colours: NO_COLOR (no-color.org) or a terminal that has none. None: click decides."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def printable(text: str) -> str:
    """The text with every control character spelled out, as \\x1b; lines and tabs stay."""
    return CONTROL.sub(_spelled, text)


def one_line(text: object) -> str:
    """The same, and on one line: a name that holds a newline makes no line of its own."""
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("ascii", "backslashreplace").decode() if ord(found[0]) > 127 else f"\\x{ord(found[0]):02x}"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """For a stream whose encoding lacks some characters: something like them, or a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, "?") for c in lacking), error.end


codecs.register_error(ERRORS, _plain)


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Streams that take any text: what their encoding lacks is replaced, and a closed one takes everything."""
    before = sys.stdout, sys.stderr
    opened: list[TextIO] = []
    errors: list[tuple[io.TextIOWrapper, str]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115, PTH123 - closed below
            opened.append(stream)
            setattr(sys, name, stream)
        elif isinstance(stream, io.TextIOWrapper):
            errors.append((stream, stream.errors or "strict"))
            stream.reconfigure(errors=ERRORS)
    try:
        yield
    finally:
        for stream, kind in errors:
            with contextlib.suppress(OSError, ValueError):  # full, or closed
                stream.reconfigure(errors=kind)
        for stream in opened:
            stream.close()
        if opened:
            sys.stdout, sys.stderr = before


def give_up(stream: TextIO | None) -> None:
    """Forget what a stream could not take, which Python would try to write again on its way out."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
