"""What a user's forward takes and returns, found out once by running it; export then sees logits (B,T,V) alone."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from gptexport.errors import CheckpointError

Key = int | str | None  # where the logits are in what forward returns; None: it returns them


class LogitsOf(nn.Module):
    """The logits alone of a module that returns them among other things.

    One of transformers would fill a cache at every call, and take its size for a number of the forward.
    """

    def __init__(self, module: nn.Module, *, key: Key = None, keep: int | None = None) -> None:
        super().__init__()
        self.module = module
        self.options = {"use_cache": False} if "use_cache" in _parameters(module) else {}
        self.key = key
        self.keep = keep  # the first `keep` logits, for a padded vocabulary

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits = pick(self.module(idx, **self.options), self.key)  # (B,T,V)
        return logits if self.keep is None else logits[..., : self.keep]


def pick(output: Any, key: Key) -> torch.Tensor:
    """The logits in what a forward returned."""
    if key is None:
        found = output
    elif isinstance(key, str) and not isinstance(output, Mapping):
        found = getattr(output, key)
    else:
        found = output[key]
    logits: torch.Tensor = found
    return logits


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # of something that is not Python
        return {}


def check_signature(module: nn.Module, source: str) -> None:
    """forward takes token ids, and asks for nothing else.

    Raises:
        CheckpointError: it takes no positional argument, or needs more than one.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # of something that is not Python; running it will tell
        return
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    takes = [p for p in parameters if p.kind in (*positional, inspect.Parameter.VAR_POSITIONAL)]
    if not takes:
        raise CheckpointError(
            f"{source}: forward takes no positional argument; expected forward(idx), token ids (B,T)."
        )
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic and p is not takes[0]]
    if needed:
        raise CheckpointError(
            f"{source}: forward needs {', '.join(needed)} after {takes[0].name}; expected forward(idx) with token ids "
            "(B,T) alone. Give the others a default, or wrap the module in one that passes them."
        )


def find_logits(output: Any, source: str, B: int, T: int, vocab_size: int | None) -> Key:
    """Where the logits are in what forward returned for ids (B,T).

    Raises:
        CheckpointError: nowhere, or more than one tensor could be them.
    """
    if isinstance(output, torch.Tensor):
        return None
    if isinstance(output, Mapping) and isinstance(output.get("logits"), torch.Tensor):
        return "logits"
    if isinstance(getattr(output, "logits", None), torch.Tensor):
        return "logits"
    entries: dict[Key, torch.Tensor] = {}
    if isinstance(output, tuple | list):
        entries = {i: value for i, value in enumerate(output) if isinstance(value, torch.Tensor)}
    elif isinstance(output, Mapping):
        entries = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
    whole = [key for key, value in entries.items() if value.is_floating_point() and value.shape[:-1] == (B, T)]
    if len(whole) > 1:
        whole = [key for key in whole if entries[key].shape[-1] == vocab_size] or whole
    if len(whole) == 1:
        return whole[0]
    if not whole:
        # nothing at every position: let the shape check say what is wrong with the one that comes closest
        last = [key for key, value in entries.items() if value.is_floating_point() and value.ndim in (2, 3)]
        if last:
            return last[0]
    problem = "several tensors could be" if whole else "nothing is"
    raise CheckpointError(
        f"{source}: forward returned {_describe(output)}, in which {problem} "
        f"the logits, (B,T,V) = ({B}, {T}, V). Return the logits first and alone, or in a dict or object as 'logits'."
    )


def check_shape(logits: torch.Tensor, source: str, B: int, T: int) -> None:
    """Logits at every position, as floats (B,T,V).

    Raises:
        CheckpointError: otherwise; what the forward seems to do is said.
    """
    shape = tuple(logits.shape)
    floats = logits.is_floating_point()
    if floats and len(shape) == 3 and shape[:2] == (B, T):
        return
    if floats and T > 1 and shape == (B, T):
        raise CheckpointError(
            f"{source}: forward returned one number for each position: {shape} for ids ({B}, {T}). Export needs V of "
            "them, the logits (B,T,V): is the last axis averaged, summed or indexed away?"
        )
    if floats and T > 1 and (shape[:-1] == (B, 1) or (len(shape) == 2 and shape[0] == B)):
        raise CheckpointError(
            f"{source}: your forward returns the last position only: logits {shape} for ids ({B}, {T}). Export needs "
            "those of all positions, (B,T,V). nanoGPT's does so when targets are None: remove its [:, [-1], :] there, "
            "or wrap the model in a module that passes targets."
        )
    if floats and len(shape) == 3 and shape[0] == B and 1 < shape[1] < T:
        raise CheckpointError(
            f"{source}: forward returned logits {shape} for ids ({B}, {T}): it cuts its ids to {shape[1]}, and a "
            f"graph must give logits at every position. Pass block_size {shape[1]}, or do not cut inside forward."
        )
    dtype = str(logits.dtype).removeprefix("torch.")
    raise CheckpointError(
        f"{source}: forward returned {dtype} {shape} for ids ({B}, {T}); "
        f"expected floating-point logits (B,T,V) = ({B}, {T}, V)."
    )


def _describe(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{name!r}: {_describe(value)}" for name, value in output.items()) + "}"
    if isinstance(output, tuple | list):
        return "(" + ", ".join(map(_describe, output)) + ")"
    return type(output).__name__
