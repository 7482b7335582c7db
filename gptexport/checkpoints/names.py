"""Names of weights: what wrappers put into them, and the tensors that are not weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

_MASK_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$")
# of torch.compile, FSDP and activation checkpointing, at any level
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_EMBEDDING = re.compile(r"(|.*\.)(?=wte\.weight$)")  # what stands before it


def clean_state_dict(state: Mapping[Any, Any]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors under their model's own names, and the problems on the way.

    What wrappers put before or into a name goes: torch.compile's `_orig_mod.`, FSDP's and checkpointing's, DDP's
    `module.`, Lightning's `model.`, whatever attribute held the model. So do the causal masks that nanoGPT and old
    versions of transformers stored as buffers. The tensors are not touched.
    """
    weights: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    outer = _outer_prefix(map(str, state))
    for key, value in state.items():
        name = strip_wrappers(str(key)).removeprefix(outer)
        if not isinstance(value, torch.Tensor):
            problems.append(f"not a tensor  {name}: {type(value).__name__}")
        elif value.layout != torch.strided or value.is_quantized or not value.is_cpu:
            problems.append(f"not dense     {name}: {value.layout}, {value.dtype}, on {value.device}")
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            held = value.untyped_storage().nbytes()
            problems.append(f"not stored    {name}: {value.numel():,} numbers in {held:,} bytes")
        elif name in weights:
            problems.append(f"twice         {name}: under two names that differ only in what wrappers add")
        elif not _is_mask(name, value):
            weights[name] = value
    return weights, tuple(problems)


def strip_wrappers(name: str) -> str:
    """The name without what torch.compile, FSDP and checkpointing put into it, and DDP's leading `module`."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _outer_prefix(names: Iterable[str]) -> str:
    """What stands before every name of a GPT-2, as the token embedding's shows: `model.`, say, or nothing."""
    found = {match[0] for name in names if (match := _EMBEDDING.match(strip_wrappers(name)))}
    if len(found) != 1:  # of several models in one file none is taken for the other
        return ""
    before = found.pop()
    return before.removesuffix("transformer.") if before.split(".")[-2:-1] == ["transformer"] else before


def is_tied(
    weights: Mapping[str, torch.Tensor], embedding: str = "transformer.wte.weight", head: str = "lm_head.weight"
) -> bool:
    """Whether the LM head is the token embedding: the same storage, or the same values."""
    one, other = weights.get(head), weights.get(embedding)
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    same_memory = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return same_memory or torch.equal(one, other)


def _is_mask(name: str, value: torch.Tensor) -> bool:
    if not _MASK_BUFFER.match(name):
        return False
    return value.ndim == 0 or (value.ndim == 4 and value.shape[:2] == (1, 1) and value.shape[2] == value.shape[3])


def without_prefix(state: Mapping[Any, Any], endings: tuple[str, ...]) -> Mapping[Any, Any]:
    """The weights without the name of the module that held the model, such as Lightning's `model.` or `net.`.

    Args:
        endings: what the name of the token embedding is in the model itself; the shortest name that ends so is it.
    """
    found = [str(name) for name in state if strip_wrappers(str(name)).endswith(endings)]
    if not found:
        return state
    name = min(found, key=len)
    ending = max((ending for ending in endings if name.endswith(ending)), key=len)
    prefix = name[: -len(ending)]
    if not prefix.endswith("."):
        return state
    return {str(key).removeprefix(prefix): value for key, value in state.items()}
