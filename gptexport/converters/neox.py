"""GPT-NeoX elsewhere: GPTNeoXForCausalLM stores q, k and v head by head, and its MLP has biases always."""

from __future__ import annotations

import re
from typing import Any

import torch

from gptexport.architectures.neox import NeoxConfig
from gptexport.converters.converter import Converter, Gguf, Given, Weights
from gptexport.converters.rope import rope_fields
from gptexport.errors import ExportError

_ACTIVATIONS = {"tanh": "gelu_new", "erf": "gelu"}
_BLOCK = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")
_INNER = {  # in a block, ours -> transformers'
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.dense",
    "mlp.c_fc": "mlp.dense_h_to_4h",
    "mlp.c_proj": "mlp.dense_4h_to_h",
}
_OUTER = {
    "transformer.wte": "gpt_neox.embed_in",
    "transformer.ln_f": "gpt_neox.final_layer_norm",
    "lm_head": "embed_out",  # as every version of transformers reads it, and what is not transformers
}
_JOINED, _MLP = "attn.c_attn", ("mlp.c_fc", "mlp.c_proj")


def _fields(config: NeoxConfig) -> dict[str, Any]:
    share = _share(config)
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "hidden_act": _ACTIVATIONS[config.gelu],
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "use_parallel_residual": config.parallel,
        "attention_bias": config.attn_bias,
        "rotary_pct": share,
        "rotary_emb_base": config.rope_base,
        **rope_fields(config.rope_base, config.rope_scaling, partial_rotary_factor=share),
    }


def _share(config: NeoxConfig) -> float:
    """How much of a head turns. Readers multiply by the head's size and round down, which may lose one in floats."""
    share = config.rotary_size / config.head_size
    return (
        share if int(config.head_size * share) == config.rotary_size else (config.rotary_size + 0.5) / config.head_size
    )


def _weights(config: NeoxConfig, weights: Given) -> Weights:
    """A bias that the MLP has not is written as zeros: x + 0 is x. A tied head is not written."""
    found: Weights = {}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tied:
            continue
        block = _BLOCK.fullmatch(name)
        if block is None:
            module, _, kind = name.rpartition(".")
            found[f"{_OUTER[module]}.{kind}"] = weight
            continue
        layer, inner, kind = block.groups()
        there = f"gpt_neox.layers.{layer}.{_INNER[inner]}"
        found[f"{there}.{kind}"] = _head_by_head(weight, config.n_head) if inner == _JOINED else weight
        if inner in _MLP and not config.mlp_bias:
            found[f"{there}.bias"] = weight.new_zeros(weight.shape[0])
    return found


def _head_by_head(weight: torch.Tensor, n_head: int) -> torch.Tensor:
    """Rows, or a bias, of a joined projection: from all q, all k, all v to each head's q, k and v."""
    by_head: torch.Tensor = weight.view(3, n_head, -1, *weight.shape[1:]).transpose(0, 1)
    return by_head.reshape(weight.shape)


def _gguf(_config: NeoxConfig, _weights: Given) -> Gguf:
    raise ExportError(
        "a GPT-NeoX is not written for llama.cpp. Write a folder with `gptexport hf`, and convert that with "
        "llama.cpp's convert_hf_to_gguf.py."
    )


CONVERTER = Converter(_fields, _weights, _gguf)
