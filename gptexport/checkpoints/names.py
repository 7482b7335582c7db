"""Names of weights: what wrappers put before them, and the buffers that are not weights."""

import re
from collections.abc import Mapping
from typing import Any

import torch

_MASK_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$")


def clean_state_dict(state: Mapping[Any, Any]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors under their models' own names, and the problems on the way.

    torch.compile's `_orig_mod.` and DDP's `module.` go, and so do the causal masks that nanoGPT and old versions of
    transformers stored as buffers. The tensors are not touched.
    """
    weights: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    for key, value in state.items():
        name = strip_wrappers(str(key))
        if not isinstance(value, torch.Tensor):
            problems.append(f"not a tensor  {name}: {type(value).__name__}")
        elif value.layout != torch.strided or value.is_quantized or not value.is_cpu:
            problems.append(f"not dense     {name}: {value.layout}, {value.dtype}, on {value.device}")
        elif name in weights:
            problems.append(f"twice         {name}: under two names that differ only in `_orig_mod.` or `module.`")
        elif not _is_mask(name, value):
            weights[name] = value
    return weights, tuple(problems)


def strip_wrappers(name: str) -> str:
    """The name without torch.compile's `_orig_mod` at any level and DDP's leading `module`."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def is_tied(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether lm_head is wte: the same storage, or the same values."""
    head, wte = weights.get("lm_head.weight"), weights.get("transformer.wte.weight")
    if head is None or wte is None or head.shape != wte.shape or head.dtype != wte.dtype:
        return False
    same_memory = head.data_ptr() == wte.data_ptr() and head.stride() == wte.stride()
    return same_memory or torch.equal(head, wte)


def _is_mask(name: str, value: torch.Tensor) -> bool:
    if not _MASK_BUFFER.match(name):
        return False
    return value.ndim == 0 or (value.ndim == 4 and value.shape[:2] == (1, 1) and value.shape[2] == value.shape[3])
