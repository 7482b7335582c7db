"""Weights of a Llama-shaped model under whatever names: to transformers' names, and its sizes from their shapes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptexport.checkpoints.sizes import layers_in, shape_of
from gptexport.errors import CheckpointError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BLOCK = "model.layers.{layer}."


def renamed(weights: Mapping[str, torch.Tensor], patterns: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Each weight under the name that its pattern gives it; one that none matches keeps its own, to be told of."""
    names: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        for pattern, target in patterns.items():
            if found := re.fullmatch(pattern, name):
                name = found.expand(target)
                break
        names[name] = weight
    return names


def sizes_of(weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The fields of LlamaConfig that follow from shapes and from what is there. Heads do not, unless they are normed.

    Raises:
        CheckpointError: a weight from which a size follows is missing or has another shape.
    """
    first = _BLOCK.format(layer=0)
    V, C = shape_of(weights, EMBEDDING, path, dims=2)
    inner, _ = shape_of(weights, f"{first}mlp.gate_proj.weight", path, dims=2)
    return {
        "vocab_size": V,
        "n_layer": layers_in(weights, _BLOCK, path),
        "n_embd": C,
        "n_inner": inner,
        "qkv_bias": f"{first}self_attn.q_proj.bias" in weights,
        "out_bias": f"{first}self_attn.o_proj.bias" in weights,
        "mlp_bias": f"{first}mlp.gate_proj.bias" in weights,
        "qk_norm": f"{first}self_attn.q_norm.weight" in weights,
    }


def heads_of(
    weights: Mapping[str, torch.Tensor], path: Path, *, n_head: int | None = None, head_size: int | None = None
) -> dict[str, Any]:
    """n_head, n_kv_head and head_size, from one of the first or the last, and the rows of the projections.

    Raises:
        CheckpointError: the rows are no multiple of it.
    """
    first = f"{_BLOCK.format(layer=0)}self_attn."
    q_rows, _ = shape_of(weights, f"{first}q_proj.weight", path, dims=2)
    k_rows, _ = shape_of(weights, f"{first}k_proj.weight", path, dims=2)
    if n_head is not None:
        if n_head < 1 or q_rows % n_head:
            raise CheckpointError(f"{path}: n_head is {n_head}, which does not divide the queries' {q_rows} rows.")
        head_size = q_rows // n_head
    if not head_size or q_rows % head_size or k_rows % head_size:
        raise CheckpointError(
            f"{path}: heads of {head_size} numbers do not divide the {q_rows} rows of the queries and the {k_rows} of "
            "the keys."
        )
    return {"n_head": q_rows // head_size, "n_kv_head": k_rows // head_size, "head_size": head_size}
