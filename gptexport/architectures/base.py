"""What an architecture is: everything that the rest of gptexport may know of one, in a single object.

To add one, write a file like gpt2.py (config, textbook module, ARCHITECTURE) and its line in __init__.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn as nn

from gptexport.assumptions import Assumption
from gptexport_runtime.contract.model import LARGEST
from gptexport_runtime.errors import shown

Smoothing = list[tuple[nn.Module, Sequence[nn.Linear]]]
"""What can be scaled by channel without changing anything else, a norm say, and all the linears that read it."""


class Config(Protocol):
    """Sizes and choices of a model: a frozen dataclass whose `__post_init__` raises ValueError for what cannot be."""

    @property
    def block_size(self) -> int: ...  # longest sequence T
    @property
    def vocab_size(self) -> int: ...  # V, of the logits
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture. Names of weights are those of `model`'s state_dict."""

    name: str  # in a manifest
    title: str  # for people
    config: Callable[..., Config]
    model: Callable[[Any], nn.Module]  # of a config; also under torch.device("meta")
    assumed: tuple[Assumption, ...] = ()
    embedding: str | None = None  # the weight (V,C) of the token embedding,
    head: str | None = None  # and that of the LM head, which may be tied to it
    cut_rows: Mapping[str, str] = field(default_factory=dict)  # weight -> the size in the config that its rows follow;
    # a {layer} in its name stands for each of them
    buffers: Callable[[Any], Mapping[str, torch.Tensor]] | None = None  # of a config: what no checkpoint stores
    block: str | None = None  # what the names of a block's weights begin with, {layer} from 0
    smoothing: Callable[[nn.Module], Smoothing] | None = None  # SmoothQuant: see export/rewrites/int8.py
    flops: Callable[[Any, int, int], float] | None = None  # of a forward of (B,T) to all logits
    strict: bool = True  # every rewrite is expected to match; False where a forward may have reasons of its own

    def __str__(self) -> str:
        return self.name


def check_sizes(config: object, *names: str) -> None:
    """Raise ValueError where a field is not a positive integer, or larger than any size of a model."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            raise ValueError(f"{name} is {shown(value)}; expected a positive integer, at most {LARGEST:,}")


def check_positive(config: object, *names: str) -> None:
    """Raise ValueError where a field is not a positive, finite number."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise ValueError(f"{name} is {shown(value)}; expected a positive number")
