"""scaled_dot_product_attention as ONNX's Attention has it, while a module is traced: the same function, said otherwise.

`is_causal=T > 1` becomes True: at T = 1, where it is False, there is nothing ahead. Heads that are rows of the batch,
(B * H,T,D), get an axis of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from gptexport.errors import ExportError

Sdpa = Callable[..., torch.Tensor]
_NAME = "scaled_dot_product_attention"


@contextmanager
def attention_as_onnx_has_it() -> Iterator[None]:
    """While open, F.scaled_dot_product_attention takes what ONNX's Attention, or torch's exporter, does not."""
    original: Sdpa = getattr(F, _NAME)

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: Any = False,
        **options: Any,
    ) -> torch.Tensor:
        if isinstance(is_causal, torch.SymBool):
            is_causal = _where_there_is_a_choice(is_causal)
        if query.dim() == key.dim() == value.dim() == 3:
            if attn_mask is not None and attn_mask.dim() == 3:
                attn_mask = attn_mask.unsqueeze(1)
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            return original(query, key, value, attn_mask, dropout_p, is_causal, **options).squeeze(1)
        return original(query, key, value, attn_mask, dropout_p, is_causal, **options)

    setattr(F, _NAME, attend)
    try:
        yield
    finally:
        setattr(F, _NAME, original)


def _where_there_is_a_choice(is_causal: torch.SymBool) -> bool:
    """What a condition on T says from T = 2 on, where causality makes a difference.

    Raises:
        ExportError: it says this of some T and that of others.
    """
    condition: Any = is_causal.node.expr
    said = set()
    for symbol in condition.free_symbols:
        longest = is_causal.node.shape_env.var_to_range[symbol].upper
        said |= {bool(condition.subs(symbol, T)) for T in range(2, int(longest) + 1)}
    if len(condition.free_symbols) != 1 or len(said) != 1:
        raise ExportError(
            f"is_causal is {condition}; a graph is causal at every T or at none. Pass is_causal=True, or a mask"
        )
    return said.pop()
