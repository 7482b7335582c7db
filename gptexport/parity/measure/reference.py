"""The yardsticks: the checkpoint's own model in float64, and in the dtype of the export."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from gptexport.casting import cast_copy
from gptexport.parity.measure.metrics import Ids, Logits
from gptexport.precision import Precision
from gptexport_runtime import GPTExportError


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model where the artifact runs, whose rounding eager then has too: a copy on the GPU.

    Itself on the CPU; and where torch has no CUDA, or the forward makes tensors on the CPU whatever it is given.
    """
    if device != "cuda" or not torch.cuda.is_available():
        return model
    moved = copy.deepcopy(model).to(device)
    try:
        run(moved, np.zeros((1, 1), np.int64))
    except RuntimeError:
        return model
    return moved


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def eager_in(model: nn.Module, precision: Precision) -> nn.Module:
    """The model as eager PyTorch runs it in a precision; itself where it is in that already."""
    dtype = precision.torch_dtype
    if all(parameter.dtype == dtype for parameter in model.parameters() if parameter.is_floating_point()):
        return model
    return cast_copy(model, dtype)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[nn.Module]:
    """The model, computing in float64: each module's weights are widened as it starts and given back as it ends.

    So the reference costs the memory of its widest module, and no second copy of the model.
    """
    kept: dict[nn.Module, list[tuple[dict[str, Any], str, Any]]] = {}

    def widen(module: nn.Module, _args: object) -> None:
        kept[module] = []
        for owned in (module._parameters, module._buffers):
            for name, tensor in owned.items():
                if tensor is not None and tensor.is_floating_point():
                    wide = tensor.detach().to(torch.float64)
                    is_parameter = owned is module._parameters
                    kept[module].append((owned, name, tensor))
                    owned[name] = nn.Parameter(wide, requires_grad=False) if is_parameter else wide  # type: ignore[assignment]

    def give_back(module: nn.Module, _args: object, _output: object) -> None:
        for owned, name, tensor in kept.pop(module, []):
            owned[name] = tensor

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(widen, prepend=True))
        hooks.append(module.register_forward_hook(give_back, always_call=True))
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(kept):
            give_back(module, None, None)


def run(model: nn.Module, ids: Ids) -> Logits:
    """Logits (B,T,V) as numpy: float64 stays, all else is widened to float32, for numpy has no bfloat16."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(ids).to(device_of(model)))
    return np.asarray((logits if logits.dtype == torch.float64 else logits.float()).cpu())


def run_reference(model: nn.Module, ids: Ids) -> Logits:
    """Logits (B,T,V) in float64.

    Raises:
        GPTExportError: the model does not run in float64.
    """
    try:
        with in_float64(model):
            return run(model, ids)
    except RuntimeError as streamed:
        try:  # a module may read the weights of another, which only a whole copy has in float64
            return run(cast_copy(model, torch.float64), ids)
        except RuntimeError:
            raise GPTExportError(
                f"the eager model does not run in float64, which the reference needs: {streamed}. "
                "Let tensors made inside forward take their dtype from the parameters."
            ) from streamed


@contextmanager
def jittered(model: nn.Module, eps: float, seed: int) -> Iterator[nn.Module]:
    """While open, what the embeddings give is off by up to half a rounding: another, equally right, eager run.

    Where a model amplifies rounding, one run may be near the truth by luck; several are not.
    """
    draw = torch.Generator().manual_seed(seed)

    def jitter(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(output.shape, generator=draw, dtype=torch.float32) * 2 - 1
        return (output.float() * (1 + eps / 2 * noise.to(output.device))).to(output.dtype)

    hooks = [m.register_forward_hook(jitter) for m in model.modules() if isinstance(m, nn.Embedding)]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
