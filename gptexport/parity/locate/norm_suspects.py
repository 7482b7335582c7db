"""The usual suspects of norms: their epsilon, gain, bias, and what they divide by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from gptexport.parity.locate.suspect import Suspect

EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 2.0**-23, 1e-8, 1e-12, 0.0)


def suspects_of_layer_norm(
    x: torch.Tensor, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Iterator[Suspect]:
    def suspect(claim: str, compute: Callable[[Any, Any, Any], torch.Tensor]) -> Suspect:
        def replacement(x: Any, _shape: Any, weight: Any = None, bias: Any = None, *_args: Any) -> torch.Tensor:
            return compute(x, weight, bias)

        return Suspect("layer_norm", claim, lambda *args, eps=eps, **kwargs: replacement(*args, **kwargs))

    def norm(x: torch.Tensor, weight: Any, bias: Any, eps: float = eps) -> torch.Tensor:
        return F.layer_norm(x, shape, weight, bias, eps)

    for other in EPSILONS:
        if not math.isclose(other, eps):
            yield suspect(f"LayerNorm epsilon {other:g} for {eps:g}", partial(norm, eps=other))
    if bias is not None:
        yield suspect("LayerNorm without its bias", lambda x, w, _b: norm(x, w, None))
    if weight is not None:
        yield suspect("LayerNorm without its gain", lambda x, _w, b: norm(x, None, b))
        yield suspect("LayerNorm with gain 1 + weight", lambda x, w, b: norm(x, 1 + w, b))
    yield suspect("RMSNorm: the mean is not subtracted", lambda x, w, b: _affine(F.rms_norm(x, shape, w, eps), b))
    n = math.prod(shape)
    if n > 1:
        bessel = math.sqrt((n - 1) / n)
        yield suspect("LayerNorm divides the variance by C - 1 for C", lambda x, w, b: norm(x * bessel, w, b))
    yield suspect("no LayerNorm at all", lambda x, _w, _b: x)


def suspects_of_rms_norm(
    x: torch.Tensor, shape: list[int], weight: Any = None, eps: float | None = None
) -> Iterator[Suspect]:
    used = torch.finfo(torch.float32).eps if eps is None else eps  # what training used, whatever the dtype here

    def suspect(claim: str, compute: Callable[[Any, Any], torch.Tensor]) -> Suspect:
        def replacement(x: Any, _shape: Any, weight: Any = None, eps: Any = None) -> torch.Tensor:
            return compute(x, weight)

        return Suspect("rms_norm", claim, replacement)

    def norm(x: torch.Tensor, weight: Any, eps: float = used) -> torch.Tensor:
        return F.rms_norm(x, shape, weight, eps)

    for other in EPSILONS:
        if not math.isclose(other, used):
            yield suspect(f"RMSNorm epsilon {other:g} for {used:g}", partial(norm, eps=other))
    if weight is not None:
        yield suspect("RMSNorm without its gain", lambda x, _w: norm(x, None))
        yield suspect("RMSNorm with gain 1 + weight", lambda x, w: norm(x, 1 + w))
    yield suspect("LayerNorm: the mean is subtracted", lambda x, w: F.layer_norm(x, shape, w, None, used))
    yield suspect("norm of the whole, not of its mean square", lambda x, w: norm(x, w) / math.sqrt(math.prod(shape)))
    yield suspect("epsilon added to the root, not under it", lambda x, w: _outside(x, w, len(shape), used))
    yield suspect("no RMSNorm at all", lambda x, _w: x)


def _affine(x: torch.Tensor, bias: Any) -> torch.Tensor:
    return x if bias is None else x + bias


def _outside(x: torch.Tensor, weight: Any, axes: int, eps: float) -> torch.Tensor:
    root = x.square().mean(dim=tuple(range(-axes, 0)), keepdim=True).sqrt()
    return x / (root + eps) * (1 if weight is None else weight)
