"""Which token ids parity feeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptexport.parity.measure.metrics import Ids
from gptexport.parity.measure.shapes import Shape
from gptexport_runtime import GPTExportError


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
