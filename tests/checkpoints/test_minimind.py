"""minimind's .pth: a Qwen3 without a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.llama_builders import IDX, logits_of, save, theirs, weights_of
from tests.support.nanogpt_reference import relative_rms

MILLION = {"rope_type": "default", "rope_theta": 1e6}


@torch.no_grad()
@pytest.mark.parametrize("resume", [False, True])
def test_minimind_3_is_a_qwen3(tmp_path: Path, resume: bool) -> None:
    """Head sizes follow from the norms; the file is float16, so the reference is rounded to it."""
    model = theirs("Qwen3", tie_word_embeddings=True, rms_norm_eps=1e-6, rope_parameters=MILLION)
    state: Any = {name: weight.half() for name, weight in weights_of(model).items()}
    model.load_state_dict(state)
    payload = {"model": state, "optimizer": {"state": {}}, "epoch": 1, "step": 5} if resume else state
    checkpoint = load_checkpoint(str(save(tmp_path / "full_sft_30.pth", payload)), block_size=64)
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    config = checkpoint.config.to_dict()
    assert (config["n_head"], config["n_kv_head"], config["tied"], config["norm_eps"]) == (6, 2, True, 1e-6)
    assert any("float16" in note for note in checkpoint.notes)


@torch.no_grad()
def test_minimind_2_has_eight_heads(tmp_path: Path) -> None:
    model = theirs(
        "Llama", hidden_size=48, num_attention_heads=8, head_dim=6, rms_norm_eps=1e-5, rope_parameters=MILLION
    )
    path = save(tmp_path / "pretrain_48.pth", weights_of(model))
    checkpoint = load_checkpoint(str(path), block_size=64)
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert any("block_size taken as 32768" in note for note in checkpoint.notes)


def test_the_tokenizer_of_its_repository_is_found(tmp_path: Path) -> None:
    for folder in ("out", "model"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    path = save(tmp_path / "out" / "pretrain_30.pth", weights_of(theirs("Qwen3", tie_word_embeddings=True)))
    assert load_checkpoint(str(path), block_size=64).tokenizer == tmp_path / "model" / "tokenizer.json"


def test_a_mixture_of_experts_is_named(tmp_path: Path) -> None:
    state = weights_of(theirs("Qwen3")) | {"model.layers.0.mlp.experts.0.gate_proj.weight": torch.zeros(4, 4)}
    with pytest.raises(UnknownCheckpointError, match="mixture of experts"):
        load_checkpoint(str(save(tmp_path / "full_sft_30_moe.pth", state)))


def test_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", weights_of(theirs("Llama")))  # 60 rows of queries
    with pytest.raises(CheckpointError, match="n_head is 8, which does not divide the queries' 60 rows"):
        load_checkpoint(str(path))
    assert load_checkpoint(str(path), n_head=6, block_size=8).config.to_dict()["n_kv_head"] == 2
