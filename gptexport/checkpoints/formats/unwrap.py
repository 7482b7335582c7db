"""Modules that stand around a user's module, and are taken off: torch.compile's, and those that run it on several GPUs.

What is inside computes the same; that it does is checked afterwards, not believed (see `as_it_came`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn as nn

from gptexport.errors import CheckpointError

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def inside(module: nn.Module) -> nn.Module:
    """What a module wraps, however often; itself where it is no wrapper."""
    while isinstance(module, (*_PARALLEL, *_compiled())):
        inner = module.module if isinstance(module, _PARALLEL) else module._orig_mod
        assert isinstance(inner, nn.Module)
        module = inner
    return module


def unwrap(module: nn.Module) -> nn.Module:
    """What a module wraps, without the wrappers in it either, at any depth. Its own submodules are changed in place."""
    module = inside(module)
    for parent in list(module.modules()):
        if parent._compiled_call_impl is not None:  # `module.compile()`
            parent._compiled_call_impl = None
        for name, child in parent.named_children():
            if (bare := inside(child)) is not child:
                setattr(parent, name, bare)
                unwrap(bare)
    return module


def check_exportable(module: nn.Module, source: str) -> None:
    """Refuse modules that have no Python forward to trace, or no weights here.

    Raises:
        CheckpointError: a part of it is TorchScript or sharded, or its weights are on the meta device.
    """
    for name, part in module.named_modules():
        where = f"its {name}" if name else "it"
        if isinstance(part, torch.jit.ScriptModule):
            raise CheckpointError(
                f"{source}: {where} is TorchScript ({type(part).__name__}), whose forward cannot be traced. "
                "Return the nn.Module that it was made from."
            )
        if type(part).__name__ == "FullyShardedDataParallel":
            raise CheckpointError(
                f"{source}: {where} is FullyShardedDataParallel, whose weights lie on several ranks. Save the full "
                "state_dict, and load it in a factory that makes the plain module."
            )
    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        if type(weight).__name__ == "DTensor":
            raise CheckpointError(
                f"{source}: {name} is a DTensor, a weight that lies on several ranks. Save the full state_dict, and "
                "load it in a factory that makes the plain module."
            )
        if weight.is_meta:
            raise CheckpointError(
                f"{source}: {name} is on the meta device and has no values. Load the weights in the factory."
            )


@contextmanager
def without_compiling() -> Iterator[None]:
    """Run compiled modules as plain Python: the same numbers, without a minute of compilation or a C++ compiler."""
    dynamo = "torch._dynamo" in sys.modules  # else nothing has been compiled, and importing it takes seconds
    with torch.compiler.set_stance("force_eager") if dynamo else nullcontext():
        yield


def _compiled() -> tuple[Any, ...]:
    """torch.compile's class, if anybody has compiled anything."""
    frame = sys.modules.get("torch._dynamo.eval_frame")
    return (frame.OptimizedModule,) if frame is not None else ()
