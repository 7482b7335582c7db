"""LitGPT's GPT-NeoX-shaped models, such as Pythia: LayerNorm, rotary positions for a part of every head, a GELU MLP."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from gptexport.architectures.neox import NeoxConfig
from gptexport.checkpoints.formats.litgpt_config import Fields, check, scaling_of, sizes_of
from gptexport.checkpoints.formats.llama_names import renamed
from gptexport.checkpoints.sizes import positive_number, wrong_values_in
from gptexport.errors import CheckpointError, UnknownCheckpointError

_REQUIRED = {
    "norm_class_name": "LayerNorm",
    "norm_qk": False,
    "sliding_window_size": None,
    "rope_interleave": False,
    "mlp_class_name": "GptNeoxMLP",
}
_GELU = {"none": "erf", "tanh": "tanh"}
_NAMES = {
    r"transformer\.h\.(\d+)\.norm_([12])\.(weight|bias)": r"transformer.h.\1.ln_\2.\3",
    r"transformer\.h\.(\d+)\.attn\.(?:qkv|attn)\.(weight|bias)": r"transformer.h.\1.attn.c_attn.\2",
    r"transformer\.h\.(\d+)\.attn\.proj\.(weight|bias)": r"transformer.h.\1.attn.c_proj.\2",
    r"transformer\.h\.(\d+)\.mlp\.fc\.(weight|bias)": r"transformer.h.\1.mlp.c_fc.\2",
    r"transformer\.h\.(\d+)\.mlp\.proj\.(weight|bias)": r"transformer.h.\1.mlp.c_proj.\2",
}
_LEGACY = re.compile(r"transformer\.h\.\d+\.attn\.attn\.(weight|bias)")


def config_of(fields: Fields, path: Path) -> NeoxConfig:
    """The NeoxConfig that computes what LitGPT computes.

    Raises:
        CheckpointError: a field has a wrong value.
        UnknownCheckpointError: fields ask for what gptexport does not build; they are named.
    """
    check(fields, _REQUIRED, path)
    sizes = sizes_of(fields, path)
    size, keys = sizes.pop("head_size"), sizes.pop("n_kv_head")
    if keys != sizes["n_head"] or size * sizes["n_head"] != sizes["n_embd"]:
        raise UnknownCheckpointError(
            f"{path}: a GPT-NeoX with n_query_groups {keys} and head_size {size} for n_head {sizes['n_head']} and "
            f"n_embd {sizes['n_embd']}; gptexport builds those with as many key heads, together as wide as n_embd."
        )
    if fields["gelu_approximate"] not in _GELU:
        raise CheckpointError(f"{path}: gelu_approximate is {fields['gelu_approximate']!r}; expected none or tanh.")
    share = positive_number(fields["rotary_percentage"], "rotary_percentage", path)
    inner = fields.get("intermediate_size")
    with wrong_values_in(path):
        return NeoxConfig(
            **sizes,
            n_inner=4 * sizes["n_embd"] if inner is None else inner,
            attn_bias=fields["bias"],
            mlp_bias=fields["bias"],
            rotary_size=int(share * size),
            rope_base=fields["rope_base"],
            rope_scaling=scaling_of(fields, path),
            parallel=fields["parallel_residual"],
            gelu=_GELU[fields["gelu_approximate"]],
            norm_eps=fields["norm_eps"],
        )


def weights_of(weights: Mapping[str, torch.Tensor], config: NeoxConfig, fields: Fields) -> dict[str, torch.Tensor]:
    """The weights under GPT's names; of older files the joined projection is copied, all q, all k, all v."""
    ordered = {name: _ordered(name, weight, config.n_head) for name, weight in weights.items()}
    return renamed(ordered, _NAMES)


def _ordered(name: str, weight: torch.Tensor, n_head: int) -> torch.Tensor:
    if not _LEGACY.fullmatch(name) or weight.ndim < 1 or weight.shape[0] % (3 * n_head):
        return weight
    return weight.reshape(n_head, 3, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)
