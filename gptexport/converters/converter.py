"""What it takes to write an architecture for other systems: as a class of transformers, and as a file of llama.cpp's.

To add one, write a file like gpt2.py and its line in CONVERTERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Weights = dict[str, torch.Tensor]
Given = Mapping[str, torch.Tensor]  # a model's weights, under the textbook module's names


@dataclass(frozen=True)
class Gguf:
    """A model as llama.cpp has it, before it is written."""

    architecture: str  # as llama.cpp spells it
    fields: Mapping[str, int | float | str]  # without the architecture's prefix
    weights: Weights
    notes: tuple[str, ...] = ()  # what a person should be told


@dataclass(frozen=True)
class Converter:
    """One architecture's way out. Each raises ExportError where the other system cannot compute what it is given."""

    fields: Callable[[Any], dict[str, Any]]
    """Of config.json, all that decide the result."""
    weights: Callable[[Any, Given], Weights]
    """Under the names of transformers' class, in its layout."""
    gguf: Callable[[Any, Given], Gguf]
    window: Callable[[Any], int | None] = lambda _config: None
    """The shortest one of its layers: no text up to it shows whether a reader knows of it."""


def renamed(name: str, blocks: str, names: Mapping[str, str]) -> str:
    """A weight's name in llama.cpp: `transformer.h.3.attn.c_attn.weight` is `blk.3.attn_qkv.weight`.

    Args:
        blocks: what comes before a block's number.
        names: of the module that holds the weight, without the block.
    """
    module, _, kind = name.rpartition(".")
    if not module.startswith(f"{blocks}."):
        return f"{names[module]}.{kind}"
    number, _, inner = module.removeprefix(f"{blocks}.").partition(".")
    return f"blk.{number}.{names[inner]}.{kind}"
