"""Llama elsewhere: as whichever of its relatives computes what the config says: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures.llama import LlamaConfig
from gptexport.architectures.rotary import Linear, Llama3, Yarn, frequencies_of
from gptexport.checkpoints.formats.huggingface_llama_config import MODEL_TYPES, config_of
from gptexport.converters.converter import Converter, Gguf, Given, Weights, renamed
from gptexport.converters.rope import rope_fields
from gptexport.errors import CheckpointError, ExportError


def _fields(config: LlamaConfig) -> dict[str, Any]:
    """Those of the first class whose reader makes the same config of them."""
    for model_type, kind in MODEL_TYPES.items():
        fields = {
            "model_type": model_type,
            "architectures": [f"{kind.name}ForCausalLM"],
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.block_size,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "num_key_value_heads": config.n_kv_head,
            "hidden_size": config.n_embd,
            "head_dim": config.head_size,
            "intermediate_size": config.n_inner,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied,
            **_biases(config, kind.defaults),
            **rope_fields(config.rope_base, config.rope_scaling),
            **_windows(config, kind.defaults),
        }
        try:
            read = config_of(fields, Path("config.json"))
        except CheckpointError:
            continue
        if replace(read, windows=()) == replace(config, windows=()) and _seen(read) == _seen(config):
            return fields
    raise ExportError(
        "no class of transformers computes this model: "
        f"{', '.join(f'{kind.name}ForCausalLM' for kind in MODEL_TYPES.values())} have other biases, norms or windows "
        f"than qkv_bias {config.qkv_bias}, out_bias {config.out_bias}, mlp_bias {config.mlp_bias}, qk_norm "
        f"{config.qk_norm}, windows {sorted(set(_seen(config)), key=str)}. Export it with `gptexport onnx` instead."
    )


def _seen(config: LlamaConfig) -> list[int | None]:
    """How many keys each layer's queries see."""
    return [config.window(layer) for layer in range(config.n_layer)]


def _biases(config: LlamaConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"attention_bias": config.qkv_bias and config.out_bias, "mlp_bias": config.mlp_bias}
    return {name: value for name, value in asked.items() if name in known}


def _windows(config: LlamaConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    """`sliding_window`, and for Qwen which layers have it."""
    if "sliding_window" not in known:
        return {}
    seen = _seen(config)
    window = next((each for each in seen if each is not None), None)
    if "use_sliding_window" not in known:
        return {"sliding_window": window}
    kinds = ["full_attention" if each is None else "sliding_attention" for each in seen]
    return {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": kinds}


def _weights(config: LlamaConfig, weights: Given) -> Weights:
    """The names are the class's own."""
    return {name: weight for name, weight in weights.items() if not (config.tied and name == "lm_head.weight")}


_NAMES = {  # ours -> llama.cpp's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GGUF = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # transformers' name -> llama.cpp's
_INTERLEAVED = "llama"  # the one that turns neighbours, (2j, 2j+1)


def _gguf(config: LlamaConfig, weights: Given) -> Gguf:
    if any(window is not None for window in _seen(config)):
        raise ExportError("llama.cpp's Llama, Qwen2 and Qwen3 have no sliding windows, and this model has.")
    architecture = _GGUF[_fields(config)["model_type"]]
    found = {}
    for name, weight in _weights(config, weights).items():
        heads = {"q_proj": config.n_head, "k_proj": config.n_kv_head}.get(name.split(".")[-2])
        turned = heads is not None and architecture == _INTERLEAVED
        found[renamed(name, "model.layers", _NAMES)] = _interleaved(weight, heads) if turned and heads else weight
    fields: dict[str, int | float | str] = {
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner,
        "block_count": config.n_layer,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": config.rope_base,
        "vocab_size": config.vocab_size,
    }
    match config.rope_scaling:
        case None:
            pass
        case Linear(factor=factor):
            fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case Llama3():
            slower = frequencies_of(config.head_size, config.rope_base, config.rope_scaling)
            found["rope_freqs.weight"] = frequencies_of(config.head_size, config.rope_base) / slower
        case Yarn():
            raise ExportError(
                "llama.cpp computes YaRN by another formula than the one that this model was trained with."
            )
    return Gguf(architecture, fields, found)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows, or a bias, of queries or keys: the pair (j, j + D/2) of each head becomes (2j, 2j+1)."""
    pairs: torch.Tensor = weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2)
    return pairs.reshape(weight.shape)


def _window(config: LlamaConfig) -> int | None:
    return min((window for window in _seen(config) if window is not None), default=None)


CONVERTER = Converter(_fields, _weights, _gguf, _window)
