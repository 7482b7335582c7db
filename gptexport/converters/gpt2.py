"""GPT-2 elsewhere: every linear and norm has a bias, and GPT2LMHeadModel stores linears as Conv1D, (in,out)."""

from __future__ import annotations

import re
from typing import Any

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.converters.converter import Converter, Gguf, Given, Weights, renamed
from gptexport.errors import ExportError

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


def _weights(config: GPTConfig, weights: Given) -> Weights:
    return {
        name: weight.t() if _CONV1D.fullmatch(name) else weight for name, weight in _biased(config, weights).items()
    }


def _biased(config: GPTConfig, weights: Given) -> Weights:
    """A bias that the model has not is written as zeros: x + 0 is x. A tied head is not written."""
    found: Weights = {}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tied:
            continue
        found[name] = weight
        if not config.bias and (part := _WITH_BIAS.fullmatch(name)):
            found[f"{part[1]}.bias"] = weight.new_zeros(weight.shape[0])
    return found


_NAMES = {  # ours -> llama.cpp's
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _gguf(config: GPTConfig, weights: Given) -> Gguf:
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ExportError("llama.cpp scales a GPT-2's attention scores by the square root of the head size alone.")
    other = "llama.cpp computes a GPT-2's GELU by the tanh formula; this model's is erf's, so its logits differ there"
    return Gguf(
        "gpt2",
        {
            "context_length": config.block_size,
            "embedding_length": config.n_embd,
            "feed_forward_length": config.mlp_width,
            "block_count": config.n_layer,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "vocab_size": config.vocab_size,
        },
        {renamed(name, "transformer.h", _NAMES): weight for name, weight in _biased(config, weights).items()},
        (other,) if config.gelu != "tanh" else (),
    )


CONVERTER = Converter(_fields, _weights, _gguf)
