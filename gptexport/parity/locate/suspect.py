"""What a suspect is: a way to compute one PyTorch function wrongly, and what to call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Suspect:
    """`compute` takes what the function took."""

    function: str  # the name of the PyTorch function
    claim: str  # "GELU tanh for erf"
    compute: Function


@dataclass(frozen=True)
class Fit:
    """A suspect with one unknown factor, 1 where nothing is wrong, which an experiment looks for."""

    function: str
    claim: Callable[[float], str]
    compute: Callable[[float], Function]
    head: int | None = None  # worth trying only where the error is in this head alone
