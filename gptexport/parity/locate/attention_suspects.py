"""The usual suspects in attention: its scale, its mask, and the order of q, k, v and of the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F

from gptexport.parity.locate.suspect import Fit, Function, Suspect

NAME = "scaled_dot_product_attention"


def suspects_of_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Iterator[Suspect | Fit]:
    """The suspects of one call of F.scaled_dot_product_attention with q, k, v (B, n_head, T, head_size)."""
    head_size, n_head = q.shape[-1], q.shape[1] if q.dim() == 4 else 1
    usual = scale if scale is not None else head_size**-0.5

    def attend(q: Any, k: Any, v: Any, scale: float = usual, mask: Any = attn_mask) -> torch.Tensor:
        return _attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)

    def with_scale(value: float) -> Function:
        return lambda q, k, v, *_args, **_kwargs: attend(q, k, v, value)

    scales = {"1": 1.0, "1/head size": 1 / head_size, "1/√C": (head_size * n_head) ** -0.5}
    for word, value in {**scales, "1/√head size": head_size**-0.5}.items():
        if not math.isclose(value, usual, rel_tol=1e-6):
            yield Suspect(NAME, f"scale of attention {word} ({value:.7g}) for {usual:.7g}", with_scale(value))
    if q.dim() == 4 and 1 < k.shape[1] < n_head:
        yield _suspect("key heads in another order: query head h reads h mod n", partial(_by_remainder, attend))
    yield from _of_windows(attend, attn_mask)
    if is_causal and q.shape[-2] > 1:
        yield _suspect("mask off by one: a token sees the next", partial(_masked, offset=1, scale=usual))
        yield _suspect("mask off by one: a token does not see itself", partial(_masked, offset=-1, scale=usual))
        yield _suspect("no causal mask: a token sees the future", partial(_attention, scale=usual))
        for cap in (30.0, 50.0):
            yield _suspect(f"scores capped at {cap:g}", partial(_capped, scale=usual, cap=cap))
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            claim = f"q, k, v read in the order {', '.join('qkv'[i] for i in order)}"
            yield _suspect(claim, partial(_reordered, attend, order))
    if n_head > 1:
        yield _suspect("heads not put side by side again: a transpose is missing", partial(_unmerged, attend))
        yield _suspect("q, k, v interleaved head by head", partial(_interleaved, attend))
    yield Fit(NAME, lambda x: f"scale of attention {x * usual:.7g} for {usual:.7g}", lambda x: with_scale(x * usual))
    for head in range(n_head if n_head > 1 else 0):
        claim = f"scale of attention times {{:.7g}} in head {head}"
        yield Fit(NAME, claim.format, partial(_one_head, attend, head), head=head)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """Neighbouring queries share a key head where there are fewer of these."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.dim() == 4 and q.shape[1] != k.shape[1], **how)


def _by_remainder(attend: Function, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    times = q.shape[1] // k.shape[1]
    return attend(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1))


def _of_windows(attend: Function, mask: Any) -> Iterator[Suspect]:
    """Where the mask (T,T) lets a token see the last tokens, its own among them."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.dim() < 2:
        return
    T, window = mask.shape[-1], int(mask[..., -1, :].reshape(-1, mask.shape[-1])[0].sum())

    def within(size: int) -> torch.Tensor:
        seen = torch.ones(T, T, dtype=torch.bool)
        return seen.tril() & ~seen.tril(-size)

    if mask.shape[-2] != T or not torch.equal(mask, within(window).expand_as(mask)):
        return
    others = {f"window of {size} keys for {window}": within(size) for size in (window + 1, window - 1) if size > 0}
    for claim, other in {**others, f"no window, for one of {window} keys": within(T)}.items():
        yield _suspect(claim, partial(attend, mask=other))


def _suspect(claim: str, compute: Callable[[Any, Any, Any], torch.Tensor]) -> Suspect:
    return Suspect(NAME, claim, lambda q, k, v, *_args, **_kwargs: compute(q, k, v))


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, offset: int, scale: float) -> torch.Tensor:
    return _attention(q, k, v, attn_mask=_mask(q, offset), scale=scale)


def _mask(q: torch.Tensor, offset: int) -> torch.Tensor:
    T = q.shape[-2]
    seen = torch.ones(T, T, dtype=torch.bool).tril(offset)
    seen[0, 0] = True  # a softmax over nothing is NaN
    return seen


def _capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, cap: float) -> torch.Tensor:
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) * scale / cap)
    return scores.masked_fill(~_mask(q, 0), -torch.inf).softmax(-1) @ v


def _reordered(attend: Function, order: tuple[int, ...], *qkv: torch.Tensor) -> torch.Tensor:
    return attend(*(qkv[i] for i in order))


def _unmerged(attend: Function, *qkv: torch.Tensor) -> torch.Tensor:
    y = attend(*qkv)
    B, n_head, T, size = y.shape
    return y.reshape(B, T, n_head, size).transpose(1, 2)


def _interleaved(attend: Function, *qkv: torch.Tensor) -> torch.Tensor:
    B, n_head, T, size = qkv[0].shape
    packed = torch.cat([x.transpose(1, 2).reshape(B, T, n_head * size) for x in qkv], dim=-1)
    return attend(*packed.view(B, T, n_head, 3, size).permute(3, 0, 2, 1, 4).unbind(0))


def _one_head(attend: Function, head: int, factor: float) -> Function:
    def compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        factors = torch.ones(q.shape[1], 1, 1, dtype=q.dtype)
        factors[head] = factor
        return attend(q * factors, k, v)

    return compute
