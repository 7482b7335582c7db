"""The small models that the demo trains, each with the initialization and the files of those who train such models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import save_file

from gptexport.architectures.gpt2 import GPT, GPTConfig
from gptexport.architectures.llama import Llama, LlamaConfig
from gptexport.architectures.nanochat import Nanochat, NanochatConfig

BLOCK_SIZE, VOCAB_SIZE = 128, 256


@dataclass(frozen=True)
class Demo:
    """A model that can be trained and saved."""

    make: Callable[[], nn.Module]  # initialized
    save: Callable[[nn.Module, Path, int, float], Path]  # model, folder, step, loss -> what to export
    learning_rate: float


def _normal(model: nn.Module, n_layer: int, residual: tuple[str, ...]) -> None:
    """GPT-2's initialization: std 0.02, projections into the residual stream scaled by 1/sqrt(2 * n_layer)."""
    for name, p in model.named_parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if name.endswith(residual) else 0.02)


GPT2 = GPTConfig(
    block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE, n_layer=4, n_head=4, n_embd=128, bias=False, gelu="erf"
)


def make_gpt2() -> GPT:
    model = GPT(GPT2)
    _normal(model, GPT2.n_layer, ("c_proj.weight",))
    return model


def save_gpt2(model: nn.Module, folder: Path, step: int, loss: float) -> Path:
    """nanoGPT's ckpt.pt."""
    fields = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")
    model_args = {name: getattr(GPT2, name) for name in fields} | {"dropout": 0.0}
    checkpoint = {
        "model": model.state_dict(),
        "model_args": model_args,
        "iter_num": step,
        "best_val_loss": loss,
        "config": {},
    }
    torch.save(checkpoint, folder / "ckpt.pt")
    return folder / "ckpt.pt"


LLAMA = LlamaConfig(
    block_size=BLOCK_SIZE,
    vocab_size=VOCAB_SIZE,
    n_layer=4,
    n_head=4,
    n_kv_head=2,
    n_embd=128,
    head_size=32,
    n_inner=344,
    tied=True,
)


def make_llama() -> Llama:
    model = Llama(LLAMA)
    _normal(model, LLAMA.n_layer, ("o_proj.weight", "down_proj.weight"))
    return model


def save_llama(model: nn.Module, folder: Path, step: int, loss: float) -> Path:
    """A Hugging Face folder."""
    out = folder / "hf"
    out.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": LLAMA.block_size,
        "vocab_size": LLAMA.vocab_size,
        "num_hidden_layers": LLAMA.n_layer,
        "num_attention_heads": LLAMA.n_head,
        "num_key_value_heads": LLAMA.n_kv_head,
        "head_dim": LLAMA.head_size,
        "hidden_size": LLAMA.n_embd,
        "intermediate_size": LLAMA.n_inner,
        "hidden_act": "silu",
        "rms_norm_eps": LLAMA.norm_eps,
        "rope_theta": LLAMA.rope_base,
        "tie_word_embeddings": LLAMA.tied,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: p.detach() for name, p in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


NANOCHAT = NanochatConfig(
    block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE, n_layer=4, n_head=2, n_kv_head=2, n_embd=128, windows=()
)


def make_nanochat() -> Nanochat:
    """nanochat's initialization: blocks begin by doing nothing, values and gates nearly so."""
    model = Nanochat(NANOCHAT)
    bound = math.sqrt(3 / NANOCHAT.n_embd)
    for name, p in model.named_parameters():
        if name == "transformer.wte.weight":
            nn.init.normal_(p, std=0.8)
        elif name == "lm_head.weight":
            nn.init.normal_(p, std=0.001)
        elif name.endswith("c_proj.weight"):
            nn.init.zeros_(p)
        elif "gate" in name:
            nn.init.uniform_(p, 0.0, 0.02)
        elif p.dim() == 2:
            nn.init.uniform_(p, -bound, bound)
    nn.init.constant_(model.x0_lambdas, 0.1)
    nn.init.constant_(model.backout_lambda, 0.2)
    return model


def save_nanochat(model: nn.Module, folder: Path, step: int, loss: float) -> Path:
    """nanochat's model_*.pt, and meta_*.json beside it."""
    out = folder / "nanochat" / "base_checkpoints" / f"d{NANOCHAT.n_layer}"
    out.mkdir(parents=True, exist_ok=True)
    names = {"sequence_len": "block_size"} | {
        name: name for name in ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    }
    config = {theirs: getattr(NANOCHAT, ours) for theirs, ours in names.items()} | {"window_pattern": "L"}
    meta = {"step": step, "val_bpb": loss / math.log(2), "model_config": config}
    (out / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2) + "\n")
    torch.save(model.state_dict(), out / f"model_{step:06d}.pt")
    return out / f"model_{step:06d}.pt"


DEMOS = {
    "gpt2": Demo(make_gpt2, save_gpt2, learning_rate=4e-3),
    "llama": Demo(make_llama, save_llama, learning_rate=4e-3),
    "nanochat": Demo(make_nanochat, save_nanochat, learning_rate=4e-3),
}
