"""Names of weights: what wrappers put into them, and the tensors that are not weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

_MASK_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$")
# of torch.compile, FSDP and activation checkpointing, at any level
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# the token embedding of the architectures that are read: what their own model puts before it, and its name
_EMBEDDINGS = (
    ("transformer.", "wte.weight"),
    ("model.", "embed_tokens.weight"),
    ("gpt_neox.", "embed_in.weight"),
    ("", "tok_embeddings.weight"),
    ("", "tok_emb.weight"),
)


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
    """What stands before every name of a model, as its token embedding's shows: `model.`, say, or nothing.

    Of several models in one file none is taken for the other.
    """
    found = set()
    for name in map(strip_wrappers, names):
        for own, ending in _EMBEDDINGS:
            if f".{name}".endswith(f".{ending}"):
                before = name.removesuffix(ending)
                found.add(before.removesuffix(own) if f".{before}".endswith(f".{own}") else before)
    return found.pop() if len(found) == 1 else ""


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
