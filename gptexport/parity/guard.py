"""What may fail after the verdict is known: it becomes a note, and the verdict stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted(failed: str, notes: list[str]) -> Iterator[None]:
    """Whatever is raised in here becomes a note of one line that begins with `failed`."""
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:300]
        notes.append(f"{failed}: {first or type(error).__name__}")
