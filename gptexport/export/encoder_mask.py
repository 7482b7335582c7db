"""nn.TransformerEncoder looks at its mask's values to see whether it is causal, which no tracer can follow.

Without that look the mask is used as it is given: the same function, and a mask in the graph. `is_causal=True` in the
user's forward says it without a look, and needs no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules import transformer

_LOOK = "_detect_is_causal_mask"


@contextmanager
def mask_as_given() -> Iterator[None]:
    """While open, nn.TransformerEncoder and nn.TransformerDecoder take the caller's word for what their mask is."""
    look = getattr(transformer, _LOOK, None)
    if look is None:  # of a torch that no longer looks
        yield
        return

    def as_said(_mask: torch.Tensor | None, is_causal: bool | None = None, _size: int | None = None) -> bool:
        return bool(is_causal)

    setattr(transformer, _LOOK, as_said)
    try:
        yield
    finally:
        setattr(transformer, _LOOK, look)
