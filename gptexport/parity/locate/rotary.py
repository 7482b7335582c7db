"""Rotary positions as a model applies them: the tables that it multiplies by, and queries and keys turned otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

Layout = Literal["halves", "neighbours"]  # which numbers of a head are a pair: (j, j + D/2), or (2j, 2j+1)
LAYOUTS: tuple[Layout, Layout] = ("halves", "neighbours")
BASES = (1e4, 1e5, 5e5, 1e6)  # GPT-NeoX's and Llama's, nanochat's, Llama 3's, Qwen's
WIDEST = 1024  # pairs; wider tensors are no tables


@dataclass(frozen=True)
class Rotary:
    """By how much the numbers of a head are turned: angles (T,pairs) float64."""

    angles: torch.Tensor

    @property
    def frequencies(self) -> torch.Tensor:
        """(pairs): radians a position."""
        return self.angles[1]

    @property
    def base(self) -> float:
        """What the frequencies are powers of, by the second, which no scaling slows; Inf where there is but one."""
        first, *others = (float(value) for value in self.frequencies[:2].abs())
        return (first / others[0]) ** len(self.frequencies) if others and others[0] > 0 else math.inf

    def with_base(self, base: float) -> torch.Tensor:
        """The angles of another base, without any scaling."""
        pairs = len(self.frequencies)
        plain = base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        return torch.outer(torch.arange(len(self.angles), dtype=torch.float64), plain) * self.frequencies[0].sign()


def turned(x: torch.Tensor, angles: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Heads x (...,T,D), of which the first 2 * pairs numbers turn by `angles` (T,pairs)."""
    pairs = angles.shape[-1]
    heads, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    cut = heads.unflatten(-1, (2, pairs) if layout == "halves" else (pairs, 2))
    axis = -2 if layout == "halves" else -1
    a, b = cut.unbind(axis)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    made = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=axis).flatten(-2)
    return torch.cat((made, rest), dim=-1)


def find_rotary(model: nn.Module, ids: torch.Tensor) -> Rotary | None:
    """What `model` turns its queries and keys by, found among what it multiplies by; None where nothing looks so."""
    if ids.shape[1] < 2:  # the first token is not turned
        return None
    mode = _Watch(ids.shape[1])
    with torch.no_grad(), suppress(_FoundError), mode:
        model(ids)
    return mode.found


class _FoundError(Exception):
    """Ends the run."""


class _Watch(TorchFunctionMode):
    """Looks at every factor until a pair of them are a cosine and a sine."""

    def __init__(self, T: int) -> None:
        super().__init__()
        self.found: Rotary | None = None
        self._T = T
        self._cosines: list[torch.Tensor] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("mul", "__mul__", "__rmul__"):
            for factor in args:
                if isinstance(factor, torch.Tensor):
                    self._look(factor)
        return func(*args, **(kwargs or {}))

    def _look(self, factor: torch.Tensor) -> None:
        T, width = self._T, factor.shape[-1] if factor.dim() else 0
        if not 0 < width <= 2 * WIDEST or factor.numel() != T * width or factor.dtype == torch.bool:
            return
        table = factor.detach().reshape(T, width)
        if table.is_complex():
            self._end(table.angle())
        elif bool((table[0] == table[0, 0]).all()) and float(table[0, 0]) > 0:
            self._cosines.append(table)
        elif not table[0].any() and table[1].any():
            for cosine in self._cosines:
                if cosine.shape == table.shape and _is_circle(cosine, table):
                    self._end(torch.atan2(table, cosine))

    def _end(self, angles: torch.Tensor) -> None:
        """One angle a pair: tables may hold each of them twice."""
        angles, half = angles.double(), angles.shape[1] // 2
        if half and angles.shape[1] == 2 * half:
            if torch.equal(angles[:, :half], angles[:, half:]):
                angles = angles[:, :half]
            elif torch.equal(angles[:, ::2], angles[:, 1::2]):
                angles = angles[:, ::2]
        self.found = Rotary(angles)
        raise _FoundError


def _is_circle(cosine: torch.Tensor, sine: torch.Tensor) -> bool:
    """Whether all points lie on one circle, whose radius may be another than 1 (YaRN's)."""
    radii = cosine.square() + sine.square()
    return bool(torch.allclose(radii, radii[0, 0].expand_as(radii), rtol=1e-3))
