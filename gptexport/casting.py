"""A model in another dtype, without changing what it computes: the one place that casts somebody's module."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model's weights in place, and of its buffers those that may follow.

    `nn.Module.to(dtype)` casts whatever is a float, and a complex buffer too, whose imaginary part is then gone. Here
    every floating-point parameter is cast, and of the buffers only those in the dtype that the parameters had: a
    float64 table, a float32 table of a 16-bit model and anything complex keep theirs. To a narrower dtype a buffer
    follows only if the forward does not run without: the angles of a rotary embedding in bfloat16 are wrong by degrees.

    Args:
        model: `forward(idx (B,T) int64)`; run once, where a buffer may or may not follow.
        dtype: a floating-point dtype.
    """
    before = floating_dtypes(model)
    narrows = any(torch.finfo(dtype).bits < torch.finfo(own).bits for own in before)
    follow = {buffer.dtype for buffer in model.buffers()} & before - {dtype}
    _cast(model, dtype, set() if narrows else follow)
    if narrows and follow and not _runs(model):
        _cast(model, dtype, follow)


def cast_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model that computes the same in `dtype`; this one stays as it is. Tensors that need no cast are shared.

    Raises:
        Exception: whatever copying a user's module raises.
    """
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)  # of the same memory
    made = copy.deepcopy(model, memo)
    cast_parameters(made, dtype)
    return made


def floating_dtypes(model: nn.Module) -> set[torch.dtype]:
    """The dtypes of its parameters, complex ones aside."""
    return {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}


def _cast(model: nn.Module, dtype: torch.dtype, buffers: set[torch.dtype]) -> None:
    """Parameters to `dtype`, and buffers that are in one of these dtypes; what was shared stays shared."""
    made: dict[torch.Tensor, torch.Tensor] = {}  # tensors are keys by identity, and kept alive so that it stays theirs

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        # _apply also gives the plain tensors of modules that override it to move them: those are treated as buffers
        follows = tensor.is_floating_point() if isinstance(tensor, nn.Parameter) else tensor.dtype in buffers
        if not follows or tensor.dtype == dtype:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return tensor.detach().to(dtype)  # _apply puts it into the Parameter, which stays the same object
        if tensor not in made:
            made[tensor] = tensor.detach().to(dtype)
        return made[tensor]

    model._apply(cast)  # what nn.Module.to is made of


def _runs(model: nn.Module) -> bool:
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        with torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=device))
    except Exception:  # a user's forward may raise anything; most often RuntimeError, of two dtypes in one product
        return False
    return True
