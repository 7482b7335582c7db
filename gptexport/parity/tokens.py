"""Which (B,T) parity looks at, and which token ids it feeds there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gptexport_runtime import GPTExportError
from gptexport_runtime.engine_file import Profile

Shape = tuple[int, int]  # (B, T)
Ids = npt.NDArray[np.int64]

MIN_POSITIONS = 32


def default_grid(block_size: int) -> list[Shape]:
    """The corners and some odd places: (1,1), (1,2), B > 1, odd lengths, the whole context."""
    wanted = [(1, 1), (1, 2), (8, 5), (3, 17), (2, block_size // 2 | 1), (1, block_size)]
    grid: list[Shape] = []
    for B, T in wanted:
        shape = (B, min(T, block_size))
        if shape not in grid:
            grid.append(shape)
    return grid


def quick_grid(block_size: int) -> list[Shape]:
    """A first answer in a fraction of the time: one token, and two rows of a few."""
    return list(dict.fromkeys([(1, 1), (2, min(33, block_size))]))


def grid_within(grid: Sequence[Shape], profiles: Sequence[Profile]) -> list[Shape]:
    """The grid moved into each profile of an engine, which computes nothing outside them and each in its own way."""
    moved = [(min(max(B, p.min[0]), p.max[0]), min(max(T, p.min[1]), p.max[1])) for p in profiles for B, T in grid]
    return list(dict.fromkeys(moved))


def draws_of(shape: Shape) -> int:
    """How many batches to draw at a shape: the noise of one position alone is a matter of luck."""
    B, T = shape
    return -(-MIN_POSITIONS // (B * T))


class TokenSource:
    """Token ids for any shape: windows of a token file, or uniform draws from the vocabulary. Deterministic."""

    def __init__(self, vocab_size: int, tokens: Ids | None = None) -> None:
        self.vocab_size = vocab_size
        self.tokens = tokens

    def check(self, shapes: Sequence[Shape]) -> None:
        """That there is text enough, before the work and not in the middle of it.

        Raises:
            GPTExportError: a shape is longer than the text.
        """
        B, T = max(shapes, key=lambda shape: shape[1])
        if self.tokens is not None and len(self.tokens) < T:
            raise GPTExportError(
                f"the token file holds {len(self.tokens)} tokens; shape {B}x{T} needs at least {T}. Give more text, or "
                "--shapes no longer than that."
            )

    def batch(self, shape: Shape, seed: int = 0) -> Ids:
        """Ids (B,T) int64; other rows for another seed."""
        B, T = shape
        draw = np.random.default_rng([seed, B, T])
        if self.tokens is None:
            return draw.integers(0, self.vocab_size, shape)
        self.check([shape])
        starts = draw.integers(0, len(self.tokens) - T + 1, B)
        return np.stack([self.tokens[start : start + T] for start in starts]).astype(np.int64)
