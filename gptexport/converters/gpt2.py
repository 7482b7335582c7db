"""GPT2LMHeadModel: linears are stored as Conv1D, (in,out), and every linear and norm has a bias."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.converters.converter import Converter, Weights

_ACTIVATIONS = {"tanh": "gelu_new", "erf": "gelu"}
_CONV1D = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_WITH_BIAS = re.compile(r"(transformer\.(?:h\.\d+\..+|ln_f))\.weight")


def _fields(config: GPTConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.n_inner,
        "activation_function": _ACTIVATIONS[config.gelu],
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "scale_attn_weights": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": config.tied,
    }


def _weights(config: GPTConfig, weights: Mapping[str, torch.Tensor]) -> Weights:
    """A bias that the model has not is written as zeros: x + 0 is x."""
    found: Weights = {}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tied:
            continue
        found[name] = weight.t() if _CONV1D.fullmatch(name) else weight
        if not config.bias and (part := _WITH_BIAS.fullmatch(name)):
            found[f"{part[1]}.bias"] = weight.new_zeros(weight.shape[0])
    return found


CONVERTER = Converter(_fields, _weights)
