"""Word of how far long work is."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]

SILENCE = 10.0  # seconds between two words


def seldom(progress: Progress) -> Progress:
    """`progress`, for what happens often: it speaks once in `SILENCE`, from now on."""
    said = time.monotonic()

    def say(step: str) -> None:
        nonlocal said
        if time.monotonic() - said > SILENCE:
            said = time.monotonic()
            progress(step)

    return say
