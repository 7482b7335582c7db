"""Causal attention, over the whole text or over a window of it."""

import torch
import torch.nn.functional as F


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None, scale: float | None = None
) -> torch.Tensor:
    """Queries (B,n_head,T,D) over keys and values (B,n_kv_head,T,D); neighbouring queries share a key head.

    A query sees the last `window` keys, its own among them; None: all up to its own.
    """
    mask = None if window is None else within(q.shape[2], window, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def within(T: int, window: int, device: torch.device) -> torch.Tensor:
    """(T,T) bool: key j is seen from query i."""
    pos = torch.arange(T, device=device)
    distance = pos[:, None] - pos
    return (distance >= 0) & (distance < window)


def window_of(windows: tuple[int | None, ...], layer: int, block_size: int) -> int | None:
    """The window of block `layer` (0-based) where `windows` repeats over the blocks; None where it never cuts."""
    window = windows[layer % len(windows)] if windows else None
    return window if window is not None and window < block_size else None


def check_windows(windows: tuple[int | None, ...]) -> None:
    """Raise ValueError where a window is neither None nor a positive integer."""
    for window in windows:
        if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
            raise ValueError(f"windows has {window!r}; expected positive integers, or None for all keys")


def keys_seen(T: int, window: int | None) -> int:
    """How many keys the T queries of one text see together."""
    full = T if window is None else min(T, window)
    return full * (full + 1) // 2 + (T - full) * full
