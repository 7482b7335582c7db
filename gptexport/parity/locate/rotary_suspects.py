"""The usual suspects of rotary positions: their base, direction, pairs, scaling and offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gptexport.parity.locate.rotary import BASES, LAYOUTS, Layout, Rotary, turned
from gptexport.parity.locate.suspect import Function, Suspect

NAME = "scaled_dot_product_attention"
Turn = Callable[[torch.Tensor], torch.Tensor]  # of queries or keys (B,n,T,D) that were turned rightly
PAIRS = {"halves": "(j, j + D/2)", "neighbours": "(2j, 2j+1)"}


def suspects_of_rotary(rotary: Rotary, attend: Function) -> Iterator[Suspect]:
    """The suspects of one call of `attend`, F.scaled_dot_product_attention, whose q and k have been turned.

    In which pairs and which way is not known: each is tried, and wrong guesses explain nothing.
    """
    for layout in LAYOUTS:
        for way in (1, -1):
            for claim, of_query, of_key in _turns(rotary, way, layout):
                yield Suspect(NAME, claim, _attending(attend, of_query, of_key))


def _turns(rotary: Rotary, way: int, layout: Layout) -> Iterator[tuple[str, Turn, Turn]]:
    """What may have been done to q and to k, in place of turning them by `way` times the angles."""
    angles, step = way * rotary.angles, way * rotary.frequencies.expand_as(rotary.angles)

    def by(more: torch.Tensor) -> Turn:
        return lambda x: turned(x, more, layout)

    for base in BASES:
        if not math.isclose(base, rotary.base, rel_tol=1e-3):
            other = by(way * rotary.with_base(base) - angles)
            yield f"rotary base {base:g} for {rotary.base:.6g}", other, other
    if math.isfinite(rotary.base):
        plain = by(way * rotary.with_base(rotary.base) - angles)
        yield "rotary frequencies without their scaling", plain, plain
    back = by(-2 * angles)
    yield "rotary positions turned the other way", back, back
    none = by(-angles)
    yield "no rotary positions", none, none
    (other_layout,) = (known for known in LAYOUTS if known != layout)

    def repaired(x: torch.Tensor) -> torch.Tensor:
        return turned(turned(x, -angles, layout), angles, other_layout)

    yield f"rotary pairs {PAIRS[other_layout]} for {PAIRS[layout]}", repaired, repaired
    for offset in (1, -1):  # only how far queries and keys are apart counts
        yield f"rotary positions of keys off by {offset:+d} from the queries'", _same, by(offset * step)
    yield "queries without rotary positions", none, _same
    yield "keys without rotary positions", _same, none


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _attending(attend: Function, of_query: Turn, of_key: Turn) -> Function:
    def compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attend(of_query(q), of_key(k), v, *args, **kwargs)

    return compute
