"""What an attention mask lets a position see, found out by evaluating it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptexport.errors import ExportError
from gptexport.export.sizes import Sizes

MOST_POSITIONS = 8192  # up to which a mask is evaluated: 64 M numbers
HIDDEN = -1e4  # an additive mask of this or less leaves nothing of a position, after the softmax


@dataclass(frozen=True, eq=False)
class Mask:
    """(..., T, T) at T = block_size: boolean, True where a position is seen, or added to the scores."""

    values: NDArray[Any]

    @property
    def visible(self) -> NDArray[np.bool_]:
        return self.values if self.values.dtype == np.bool_ else np.asarray(self.values > HIDDEN)

    @property
    def causal(self) -> bool:
        """Exactly the positions up to its own are seen, each as it is."""
        T = self.values.shape[-1]
        if not (self.visible == np.tri(T, dtype=bool)).all():
            return False
        return self.values.dtype == np.bool_ or not self.values[self.visible].any()

    @property
    def window(self) -> int | None:
        """How many positions each sees, its own among them, if they are the last ones, each as it is, in every row."""
        T = self.values.shape[-1]
        if self.visible.size != T * T or (self.values.dtype != np.bool_ and self.values[self.visible].any()):
            return None
        return window_of(self.visible.reshape(T, T))

    @property
    def looks_ahead(self) -> bool:
        return bool(np.triu(self.visible, 1).any())


def window_of(seen: NDArray[np.bool_]) -> int | None:
    """How many positions each of (T,T) sees, its own among them, if they are the last ones; else None."""
    window = int(seen[-1].sum())
    T = len(seen)
    return window if (seen == (np.tri(T, dtype=bool) & ~np.tri(T, k=-window, dtype=bool))).all() else None


def evaluate_mask(sizes: Sizes, value: ir.Value, block_size: int) -> Mask:
    """The mask that `value` is.

    Raises:
        ExportError: it depends on the tokens, is too large, or cannot be evaluated.
    """
    if value in sizes.on_tokens:
        raise ExportError(
            "attention has a mask that depends on the tokens. A mask of padding is not needed here, where rows of "
            "unequal lengths are kept apart; without it there would be a cache"
        )
    if block_size > MOST_POSITIONS:
        raise ExportError(
            f"attention has a mask of {block_size} x {block_size}, and one of more than {MOST_POSITIONS} positions is "
            "not looked at. is_causal=True needs none"
        )
    values = sizes.evaluate(value, T=block_size)
    if values.ndim < 2 or values.shape[-2:] != (block_size, block_size):
        raise ExportError(f"attention has a mask of shape {values.shape}; expected (..., T, T)")
    return Mask(values)
