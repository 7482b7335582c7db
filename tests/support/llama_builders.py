"""Tiny Llama-shaped models of transformers, and the same weights in other people's files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 30,
    "intermediate_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# rope_parameters of transformers' configs, of a model trained on 32 or 16 tokens
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
IDX = torch.arange(2 * 40).reshape(2, 40) * 31 % 97


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights that show a mistake in the logits: gains not 1, biases not 0, tied ones drawn once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gain = "norm" in name
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if gain else 0.25) + gain)


def theirs(kind: str, **config: Any) -> Any:
    """transformers' `{kind}ForCausalLM` with random weights; a field that is None is left to its default."""
    fields = {name: value for name, value in {**SIZES, **config}.items() if value is not None}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**fields))
    randomize(model)
    return model.eval()


def tiny_neox(**config: Any) -> Any:
    """transformers' GPTNeoXForCausalLM with random weights, four of ten numbers a head turning."""
    fields: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 30,
        "intermediate_size": 120,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.4},
        **config,
    }
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**fields))
    randomize(model)
    return model.eval()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(IDX).logits
    return logits


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies under transformers' names, a tied head as well."""
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def renamed(weights: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Under the names that the patterns give; every weight must have one."""
    made = {}
    for name, weight in weights.items():
        (new,) = (found.expand(target) for p, target in names.items() if (found := re.fullmatch(p, name)))
        made[new] = weight
    return made


def to_interleaved(weight: torch.Tensor, n_head: int) -> torch.Tensor:
    """Rows of a query or key projection so that pairs (j, j + D/2) become (2j, 2j+1), as Meta stores them."""
    D = weight.shape[0] // n_head
    order = torch.tensor([half * D // 2 + j for j in range(D // 2) for half in range(2)])
    return torch.cat([weight[head * D : (head + 1) * D][order] for head in range(n_head)])


def save(path: Path, payload: Any) -> Path:
    torch.save(payload, path)
    return path
