"""LitGPT's Llama-shaped models: RMSNorm, rotary positions for whole heads, a gated MLP.

q, k and v are one projection: all q, all k, all v; in older files the queries of a group, its key and its value, group
after group.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gptexport.architectures.llama import LlamaConfig
from gptexport.architectures.rotary import interleaved_to_halves
from gptexport.checkpoints.formats.litgpt_config import Fields, check, scaling_of, sizes_of
from gptexport.checkpoints.formats.llama_names import EMBEDDING, HEAD, renamed
from gptexport.checkpoints.sizes import positive_integer, wrong_values_in
from gptexport.errors import CheckpointError

_REQUIRED = {
    "norm_class_name": "RMSNorm",
    "norm_qk_type": "default",
    "parallel_residual": False,
    "rotary_percentage": 1.0,
    "mlp_class_name": "LLaMAMLP",
}
_NAMES = {
    r"transformer\.wte\.weight": EMBEDDING,
    r"lm_head\.weight": HEAD,
    r"transformer\.ln_f\.weight": "model.norm.weight",
    r"transformer\.h\.(\d+)\.norm_1\.weight": r"model.layers.\1.input_layernorm.weight",
    r"transformer\.h\.(\d+)\.norm_2\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    r"transformer\.h\.(\d+)\.attn\.norm_([qk])\.weight": r"model.layers.\1.self_attn.\2_norm.weight",
    r"transformer\.h\.(\d+)\.attn\.proj\.(weight|bias)": r"model.layers.\1.self_attn.o_proj.\2",
    r"transformer\.h\.(\d+)\.mlp\.fc_1\.(weight|bias)": r"model.layers.\1.mlp.gate_proj.\2",
    r"transformer\.h\.(\d+)\.mlp\.fc_2\.(weight|bias)": r"model.layers.\1.mlp.up_proj.\2",
    r"transformer\.h\.(\d+)\.mlp\.proj\.(weight|bias)": r"model.layers.\1.mlp.down_proj.\2",
}
_QKV = re.compile(r"transformer\.h\.(\d+)\.attn\.(qkv|attn)\.(weight|bias)")


def config_of(fields: Fields, path: Path) -> LlamaConfig:
    """The LlamaConfig that computes what LitGPT computes.

    Raises:
        CheckpointError: a field has a wrong value.
        UnknownCheckpointError: fields ask for what gptexport does not build; they are named.
    """
    check(fields, _REQUIRED, path)
    with wrong_values_in(path):
        return LlamaConfig(
            **sizes_of(fields, path),
            n_inner=positive_integer(fields.get("intermediate_size"), "intermediate_size", path),
            qkv_bias=fields["bias"] or fields["attn_bias"],
            out_bias=fields["bias"],
            mlp_bias=fields["bias"],
            qk_norm=fields["norm_qk"],
            norm_eps=fields["norm_eps"],
            rope_base=fields["rope_base"],
            rope_scaling=scaling_of(fields, path),
            windows=_windows(fields, path),
        )


def _windows(fields: Fields, path: Path) -> tuple[int | None, ...]:
    window, chosen = fields["sliding_window_size"], fields["sliding_window_indices"]
    if window is None:
        return ()
    if chosen is None:
        return (window,)
    n_layer = positive_integer(fields["n_layer"], "n_layer", path)
    if not isinstance(chosen, list) or len(chosen) < n_layer or any(use not in (0, 1) for use in chosen):
        raise CheckpointError(f"{path}: sliding_window_indices is {chosen!r}; expected a 0 or 1 for each layer.")
    return tuple(window if use else None for use in chosen[:n_layer])


@dataclass(frozen=True)
class _Rows:
    """How many rows of a joined projection belong to q, k and v."""

    q: int
    k: int
    groups: int


def weights_of(weights: Mapping[str, torch.Tensor], config: LlamaConfig, fields: Fields) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, q, k and v apart: views, or copies of what was interleaved."""
    return renamed(_parted(weights, config, interleaved=fields["rope_interleave"]), _NAMES)


def _parted(weights: Mapping[str, torch.Tensor], config: LlamaConfig, *, interleaved: bool) -> dict[str, torch.Tensor]:
    """q, k and v apart; what has another number of rows stays, to be told of."""
    rows = _Rows(config.n_head * config.head_size, config.n_kv_head * config.head_size, config.n_kv_head)
    parted = {}
    for name, weight in weights.items():
        found = _QKV.fullmatch(name)
        if found is None or weight.ndim < 1 or weight.shape[0] != rows.q + 2 * rows.k:
            parted[name] = weight
            continue
        layer, kind, part = found.groups()
        q, k, v = _split(weight, rows, legacy=kind == "attn")
        if interleaved:
            q, k = interleaved_to_halves(q, config.n_head), interleaved_to_halves(k, config.n_kv_head)
        for letter, tensor in zip("qkv", (q, k, v), strict=True):
            parted[f"model.layers.{layer}.self_attn.{letter}_proj.{part}"] = tensor
    return parted


def _split(weight: torch.Tensor, rows: _Rows, *, legacy: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not legacy:
        q, k, v = torch.split(weight, [rows.q, rows.k, rows.k])
        return q, k, v
    groups = weight.reshape(rows.groups, -1, *weight.shape[1:])  # (groups, rows of its queries, key and value, C)
    size = rows.k // rows.groups
    q, k, v = torch.split(groups, [groups.shape[1] - 2 * size, size, size], dim=1)
    return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
