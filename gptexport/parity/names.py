"""How modules are called in a verdict."""

from __future__ import annotations

import re


def short(module: str) -> str:
    """`h.7.mlp` of `transformer.h.7.mlp`."""
    return re.sub(r"^(transformer|model)(\.|$)", "", module)


def block_of(module: str) -> str | None:
    """`h.7` of `transformer.h.7.mlp.gelu`; None outside of the blocks."""
    match = re.match(r"(.*?\.\d+)(\.|$)", module)
    return short(match.group(1)) if match else None
