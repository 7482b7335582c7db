"""`model.pth` of "Build a Large Language Model (From Scratch)": a bare state_dict, or one beside its optimizer's.

GPTModel is GPT-2 under other names, q, k and v apart and by default without a bias, a head of its own. Its sizes follow
from shapes, the number of heads does not. GELU is tanh. Llama3Model and Qwen3Model are in `llms_from_scratch_llama`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import gpt2
from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.sizes import heads_of_gpt2, layers_in, note_of_heads, shape_of, wrong_values_in
from gptexport.checkpoints.types import Stored

FORMAT = "llms-from-scratch"
_NAMES = {  # a pattern -> GPT's name
    r"tok_emb\.weight": "transformer.wte.weight",
    r"pos_emb\.weight": "transformer.wpe.weight",
    r"out_head\.(weight|bias)": r"lm_head.\1",
    r"trf_blocks\.(\d+)\.att\.(?:out_)?proj\.(weight|bias)": r"transformer.h.\1.attn.c_proj.\2",
    r"trf_blocks\.(\d+)\.ff\.layers\.0\.(weight|bias)": r"transformer.h.\1.mlp.c_fc.\2",
    r"trf_blocks\.(\d+)\.ff\.layers\.2\.(weight|bias)": r"transformer.h.\1.mlp.c_proj.\2",
    r"trf_blocks\.(\d+)\.norm([12])\.(?:scale|weight)": r"transformer.h.\1.ln_\2.weight",
    r"trf_blocks\.(\d+)\.norm([12])\.(?:shift|bias)": r"transformer.h.\1.ln_\2.bias",
    r"trf_blocks\.(\d+)\.att\.qkv\.(weight|bias)": r"transformer.h.\1.attn.c_attn.\2",  # GPTModelFast
    r"final_norm\.(?:scale|weight)": "transformer.ln_f.weight",
    r"final_norm\.(?:shift|bias)": "transformer.ln_f.bias",
}
_PARTS = ("W_query", "W_key", "W_value")
_BLOCK = "trf_blocks.{layer}."


def read(state: Mapping[Any, Any], path: Path, *, n_head: int | None = None) -> Stored:
    """What a GPTModel's state_dict says; its q, k and v are joined, all else stays mapped.

    Raises:
        CheckpointError: a weight from which a size follows is missing or has another shape.
    """
    weights, problems = clean_state_dict(state)
    weights = {name: weight for name, weight in weights.items() if not re.fullmatch(r".*\.att\.mask", name)}
    V, C = shape_of(weights, "tok_emb.weight", path, dims=2)
    T, _ = shape_of(weights, "pos_emb.weight", path, dims=2)
    n_layer = layers_in(weights, _BLOCK, path)
    named = _joined(weights, n_layer, C)
    heads, told = heads_of_gpt2(C, n_head, path)
    with wrong_values_in(path):
        config = GPTConfig(
            block_size=T,
            vocab_size=V,
            n_layer=n_layer,
            n_head=heads,
            n_embd=C,
            gelu="tanh",
            bias=True,
            tied=is_tied(named),
        )
    return Stored(
        format=FORMAT,
        path=path,
        architecture=gpt2.ARCHITECTURE,
        config=config,
        assumed={"gelu": "format", "n_head": told},
        weights=named,
        files=(path,),
        problems=problems,
        notes=note_of_heads(heads, told),
    )


def _joined(weights: Mapping[str, torch.Tensor], n_layer: int, C: int) -> dict[str, torch.Tensor]:
    """Under GPT's names, W_query, W_key and W_value one c_attn; a bias that is not there is zeros."""
    named = {}
    taken = set()
    for layer in range(n_layer):
        prefix = f"{_BLOCK.format(layer=layer)}att."
        parts = [f"{prefix}{part}" for part in _PARTS]
        if not all(f"{part}.weight" in weights for part in parts):
            continue
        target = f"transformer.h.{layer}.attn.c_attn"
        named[f"{target}.weight"] = torch.cat([weights[f"{part}.weight"] for part in parts])
        taken |= {f"{part}.weight" for part in parts}
        if all(f"{part}.bias" in weights for part in parts):
            named[f"{target}.bias"] = torch.cat([weights[f"{part}.bias"] for part in parts])
            taken |= {f"{part}.bias" for part in parts}
    for name, weight in weights.items():
        if name not in taken:
            named[_renamed(name)] = weight
    for layer in range(n_layer):
        target = f"transformer.h.{layer}.attn.c_attn"
        if f"{target}.weight" in named:
            named.setdefault(f"{target}.bias", torch.zeros(3 * C, dtype=named[f"{target}.weight"].dtype))
    return named


def _renamed(name: str) -> str:
    for pattern, target in _NAMES.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(target)
    return name  # which the comparison with the config then calls unexpected
