"""llama2.c's ckpt.pt: rotary pairs interleaved, the head tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.errors import CheckpointError
from tests.support.llama_builders import IDX, logits_of, renamed, save, theirs, to_interleaved, weights_of
from tests.support.nanogpt_reference import relative_rms

NAMES = {
    r"model\.embed_tokens\.weight": "tok_embeddings.weight",
    r"lm_head\.weight": "output.weight",
    r"model\.norm\.weight": "norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight": r"layers.\1.attention.w\2.weight",
    r"model\.layers\.(\d+)\.mlp\.gate_proj\.weight": r"layers.\1.feed_forward.w1.weight",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.weight": r"layers.\1.feed_forward.w2.weight",
    r"model\.layers\.(\d+)\.mlp\.up_proj\.weight": r"layers.\1.feed_forward.w3.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"layers.\1.attention_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"layers.\1.ffn_norm.weight",
}
ARGS = {
    "dim": 60,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 97,
    "multiple_of": 32,
    "max_seq_len": 64,
    "dropout": 0.0,
}


def llama2c(path: Path, **args: Any) -> tuple[Path, Any]:
    model = theirs("Llama", hidden_size=60, tie_word_embeddings=True)
    weights = weights_of(model)
    for name in weights:
        if name.endswith("q_proj.weight"):
            weights[name] = to_interleaved(weights[name], 6)
        if name.endswith("k_proj.weight"):
            weights[name] = to_interleaved(weights[name], 2)
    fields = {name: value for name, value in {**ARGS, **args}.items() if value is not ...}
    state = {f"_orig_mod.{name}": weight for name, weight in renamed(weights, NAMES).items()}
    payload = {"model": state, "model_args": fields, "iter_num": 7, "best_val_loss": torch.tensor(1.5), "config": {}}
    return save(path, payload), model


@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    path, model = llama2c(tmp_path / "ckpt.pt")
    checkpoint = load_checkpoint(str(path))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert checkpoint.format == "llama2.c" and checkpoint.config.to_dict()["tied"]
    assert checkpoint.block_size == 64


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"n_heads": ...}, "model_args lacks n_heads"),
        ({"rope_theta": 1e6}, "model_args has rope_theta, which"),
        ({"n_heads": "6"}, "n_heads is '6'"),
        ({"n_heads": 7}, "n_head is 7, which does not divide the queries' 60 rows"),
        ({"n_kv_heads": 3}, "n_kv_heads is 3, but the keys have 2 heads"),
        ({"n_layers": 4}, r"missing\s+model\.layers\.3"),
        ({"norm_eps": -1.0}, r"norm_eps is -1\.0"),
    ],
)
def test_malformed_model_args_name_the_field(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    path, _ = llama2c(tmp_path / "ckpt.pt", **args)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))
