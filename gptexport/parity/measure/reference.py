"""The yardsticks: the checkpoint's own model in float64, and as eager PyTorch runs it in the dtype of the export."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn as nn

from gptexport.casting import Cast
from gptexport.parity.measure.float64 import in_float64, uncompiled
from gptexport.parity.measure.metrics import Ids, Logits
from gptexport.precision import Precision


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model where the artifact runs, whose rounding eager then has too: a copy on the GPU.

    Itself on the CPU; and where torch has no CUDA, or the forward makes tensors on the CPU whatever it is given.
    """
    if _torch_device(device) == device_of(model) or not torch.cuda.is_available():
        return model
    moved = copy.deepcopy(model).to(device)
    try:
        run(moved, np.zeros((1, 1), np.int64))
    except RuntimeError:
        return model
    return moved


def _torch_device(device: str) -> torch.device:
    """Where torch computes beside the runtime's device: on the CPU, if it has no name for it."""
    try:
        return torch.device(device)
    except RuntimeError:
        return torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def eager_in(model: nn.Module, precision: Precision) -> Cast:
    """The model as eager PyTorch runs it in a precision, while that is open."""
    return Cast(model, precision.torch_dtype)


def run_eager(eager: Cast, ids: Ids) -> Logits:
    """Logits (B,T,V) of the model in the dtype of the export, as `run` gives them."""
    with eager as model:
        return run(model, ids)


def run(model: nn.Module, ids: Ids) -> Logits:
    """Logits (B,T,V) as numpy: float64 stays, all else is widened to float32, for numpy has no bfloat16."""
    with torch.no_grad(), uncompiled():
        found: torch.Tensor = model(torch.from_numpy(ids).to(device_of(model)))
    return np.asarray((found if found.dtype == torch.float64 else found.float()).cpu())


def run_reference(model: nn.Module, ids: Ids) -> Logits | None:
    """Logits (B,T,V) in float64; None where the model does not run in it.

    What an operation cannot do in float64 it does in float32, and the forward goes on in float64. A forward that
    breaks nevertheless is run with its weights in float64.
    """
    for compute in (_widened, _cast):
        try:
            found = compute(model, ids)
        except (RuntimeError, TypeError, NotImplementedError, AssertionError):  # a user's forward may check its dtypes
            continue
        if found.dtype == np.float64:
            return found
    return None


def _widened(model: nn.Module, ids: Ids) -> Logits:
    with in_float64(model):
        return run(model, ids)


def _cast(model: nn.Module, ids: Ids) -> Logits:
    with Cast(model, torch.float64):
        return run(model, ids)
