"""Random Llama- and nanochat-shaped checkpoints: what parity must never call wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from gptexport.architectures.llama import Llama, LlamaConfig
from gptexport.architectures.nanochat import Nanochat, NanochatConfig

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
]


def randomize(model: torch.nn.Module, draw: np.random.Generator) -> dict[str, torch.Tensor]:
    """Weights as small or large as any training leaves them, gains near 1, and logits of any size; a state_dict."""
    generator = torch.Generator().manual_seed(int(draw.integers(1 << 30)))
    scale, last = float(draw.choice([0.02, 0.1, 0.3])), float(draw.choice([0.1, 1.0, 10.0]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gain = "norm" in name or name == "resid_lambdas"
            of_head = last if name == "lm_head.weight" else 1.0
            weight.copy_((torch.randn(weight.shape, generator=generator) * scale + gain) * of_head)
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def random_llama(folder: Path, draw: np.random.Generator) -> Path:
    """A Hugging Face folder of Llama, Mistral, Qwen2 or Qwen3: any key heads, scaling, window, tied or not."""
    kind, sizes = str(draw.choice(["llama", "mistral", "qwen2", "qwen3"])), _heads(draw)
    block_size, layers = int(draw.integers(2, 97)), int(draw.integers(1, 5))
    rope = {"rope_theta": float(draw.choice([1e4, 5e5, 1e6])), **ROPES[int(draw.integers(len(ROPES)))]}
    if "factor" in rope:
        rope["original_max_position_embeddings"] = max(1, block_size // 4)
    fields: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": 2 * int(draw.integers(2, 40)),
        "head_dim": sizes["head_size"],
        "num_attention_heads": sizes["n_head"],
        "num_key_value_heads": sizes["n_kv_head"],
        "num_hidden_layers": layers,
        "intermediate_size": int(draw.integers(4, 200)),
        "vocab_size": int(draw.integers(2, 1500)),
        "max_position_embeddings": block_size,
        "rms_norm_eps": float(draw.choice([1e-5, 1e-6])),
        "rope_parameters": rope,
        "tie_word_embeddings": bool(draw.integers(2)),
        "use_sliding_window": kind.startswith("qwen") and bool(draw.integers(2)),
        "sliding_window": int(draw.integers(1, block_size + 1)),
        "max_window_layers": int(draw.integers(layers + 1)),
    }
    bias = kind == "llama" and bool(draw.integers(2))
    fields |= {"attention_bias": bias, "mlp_bias": bias} if kind == "llama" else {}
    model = Llama(
        LlamaConfig(
            **sizes,
            block_size=block_size,
            vocab_size=fields["vocab_size"],
            n_layer=layers,
            n_embd=fields["hidden_size"],
            n_inner=fields["intermediate_size"],
            qkv_bias=bias or kind == "qwen2",
            out_bias=bias,
            mlp_bias=bias,
            qk_norm=kind == "qwen3",
            tied=fields["tie_word_embeddings"],
        )
    )
    state = randomize(model, draw)
    if fields["tie_word_embeddings"]:
        del state["lm_head.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state, folder / "model.safetensors")
    return folder


def random_nanochat(folder: Path, draw: np.random.Generator) -> Path:
    """A checkpoint of any of its generations, of any size and pattern."""
    sizes = _heads(draw)
    generation = int(draw.integers(5))
    channels = (0, 0, 32, 12, 12)[generation]
    n_embd = sizes["n_head"] * sizes.pop("head_size")
    if n_embd < 32:  # what gates read
        n_embd, sizes["n_head"], sizes["n_kv_head"] = 32, 2, 1
    fields: dict[str, Any] = {
        "sequence_len": int(draw.integers(2, 300)),
        "vocab_size": int(draw.integers(2, 1000)),
        "n_layer": int(draw.integers(1, 5)),
        "n_embd": n_embd,
        **sizes,
    }
    config = {**fields, "block_size": fields["sequence_len"]}
    del config["sequence_len"]
    config |= {"lambdas": generation > 0, "value_channels": channels, "smear": generation == 4}
    state = randomize(Nanochat(NanochatConfig(**config, backout=generation == 4)), draw)
    folder.mkdir(parents=True, exist_ok=True)
    pattern = {"window_pattern": str(draw.choice(["L", "SSSL", "SL"]))} if generation else {}
    (folder / "meta_000001.json").write_text(json.dumps({"step": 1, "model_config": {**fields, **pattern}}))
    torch.save(state, folder / "model_000001.pt")
    return folder / "model_000001.pt"


def _heads(draw: np.random.Generator) -> dict[str, Any]:
    shared, keys = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    return {"n_head": shared * keys, "n_kv_head": keys, "head_size": 2 * int(draw.integers(1, 17))}


RANDOM: dict[str, Callable[[Path, np.random.Generator], Path]] = {"llama": random_llama, "nanochat": random_nanochat}
