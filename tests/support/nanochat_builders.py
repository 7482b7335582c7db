"""nanochat's checkpoints of every generation, written from the format's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.support.nanochat_reference import Facts

V, PADDED, L, H, K, C, D = 83, 128, 5, 4, 2, 64, 16
SEQUENCE = 400  # so that every generation has a window of its own
GENERATIONS: dict[str, tuple[int, bool, bool, Facts]] = {  # value channels, lambdas, smear, and what is computed
    "2025-10-13": (0, False, False, Facts(1e4, 1.0, 0.0, (SEQUENCE,) * L, 15.0)),
    "2026-01-11": (0, True, False, Facts(1e4, 1.0, 0.0, (200, 200, 200, SEQUENCE, SEQUENCE), 15.0)),
    "2026-01-16": (32, True, False, Facts(1e4, 1.0, 2.0, (200, 200, 200, SEQUENCE, SEQUENCE), 15.0)),
    "2026-03-09": (12, True, False, Facts(1e5, 1.15, 3.0, (256, 256, 256, SEQUENCE, SEQUENCE), 15.0)),
    "2026-03-14": (12, True, True, Facts(1e5, 1.2, 3.0, (128, 128, 128, SEQUENCE, SEQUENCE), 15.0)),
}


def state_of(channels: int, lambdas: bool, smear: bool, *, padded: int = PADDED) -> dict[str, torch.Tensor]:
    """Random weights under nanochat's names, embeddings in bfloat16 as it trains them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.15) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    state = {"transformer.wte.weight": normal(padded, C).bfloat16(), "lm_head.weight": normal(padded, C, scale=1.5)}
    for layer in range(L):
        block = f"transformer.h.{layer}"
        for name, rows in (("c_q", C), ("c_k", K * D), ("c_v", K * D), ("c_proj", C)):
            state[f"{block}.attn.{name}.weight"] = normal(rows, C)
        state[f"{block}.mlp.c_fc.weight"] = normal(4 * C, C)
        state[f"{block}.mlp.c_proj.weight"] = normal(C, 4 * C)
        if channels and layer % 2 == (L - 1) % 2:
            state[f"{block}.attn.ve_gate.weight"] = normal(K, channels, scale=0.7)
            state[f"value_embeds.{layer}.weight"] = normal(padded, K * D).bfloat16()
    if lambdas:
        state |= {"resid_lambdas": 1 + normal(L), "x0_lambdas": normal(L, scale=0.4)}
    if smear:
        state |= {"smear_gate.weight": normal(1, 24, scale=0.7), "smear_lambda": normal(1, scale=0.7)}
        state |= {"backout_lambda": normal(1, scale=0.7)}
    return state


def nanochat(
    folder: Path, state: dict[str, torch.Tensor], *, step: int = 3750, prefix: str = "_orig_mod.", **config: Any
) -> Path:
    """`model_003750.pt` and `meta_003750.json`; a field of model_config that is `...` is left out."""
    fields = {"sequence_len": SEQUENCE, "vocab_size": V, "n_layer": L, "n_head": H, "n_kv_head": K, "n_embd": C}
    fields = {name: v for name, v in {**fields, "window_pattern": "SSSL", **config}.items() if v is not ...}
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"step": step, "val_bpb": 0.81, "model_config": fields, "user_config": {"depth": 5}}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    path = folder / f"model_{step:06d}.pt"
    torch.save({prefix + name: weight for name, weight in state.items()}, path)
    return path
