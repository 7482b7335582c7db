"""GPTModel, Llama3Model and Qwen3Model of "Build a Large Language Model (From Scratch)", from the book's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.architectures.rotary import Llama3
from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.builders import SIZES, random_weights
from tests.support.format_builders import LLMS_FROM_SCRATCH_GPT, LLMS_FROM_SCRATCH_LLAMA, llms_from_scratch_gpt
from tests.support.llama_builders import IDX, logits_of, renamed, save, theirs, weights_of
from tests.support.nanogpt_reference import nanogpt_logits, relative_rms

SHORT = torch.tensor([[5, 0, 96, 31, 31, 7, 2], [1, 2, 3, 4, 5, 6, 90]])


@torch.no_grad()
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_gpt_model_computes_the_books_forward(tmp_path: Path, qkv_bias: bool, wrapped: bool) -> None:
    state, weights = llms_from_scratch_gpt(qkv_bias=qkv_bias)
    payload: Any = {"model_state_dict": state, "optimizer_state_dict": {"state": {}}} if wrapped else state
    checkpoint = load_checkpoint(str(save(tmp_path / "model.pth", payload)), n_head=3)
    expected = nanogpt_logits(weights, SHORT, n_layer=3, n_head=3, gelu="tanh")
    assert relative_rms(checkpoint.model(SHORT), expected) <= 2e-6
    assert checkpoint.format == "llms-from-scratch" and checkpoint.assumed["n_head"] == "option"
    assert (checkpoint.block_size, checkpoint.vocab_size) == (SIZES["block_size"], SIZES["vocab_size"])


@torch.no_grad()
def test_the_fast_gpt_model_is_read_too(tmp_path: Path) -> None:
    """Its q, k and v are joined, its norms PyTorch's."""
    fields: dict[str, Any] = {**SIZES}
    weights = random_weights(**fields, tied=False)
    norms = {"scale": "weight", "shift": "bias"}
    state = {}
    for name, weight in renamed(weights, LLMS_FROM_SCRATCH_GPT).items():
        stem, _, last = name.rpartition(".")
        state[f"{stem.replace('out_proj', 'proj')}.{norms.get(last, last)}"] = weight
    checkpoint = load_checkpoint(str(save(tmp_path / "model.pth", state)), n_head=3)
    expected = nanogpt_logits(weights, SHORT, n_layer=3, n_head=3, gelu="tanh")
    assert relative_rms(checkpoint.model(SHORT), expected) <= 2e-6


def test_the_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pth", llms_from_scratch_gpt(qkv_bias=True)[0])
    with pytest.raises(CheckpointError, match=r"n_embd 30\) do not say how many heads.*pass n_head"):
        load_checkpoint(str(path))
    with pytest.raises(CheckpointError, match="n_embd 30 is not a multiple of n_head 7"):
        load_checkpoint(str(path), n_head=7)
    info = describe_checkpoint(str(path))
    assert not info.readable and any("pass n_head" in problem for problem in info.problems)


def test_of_a_width_that_openai_trained_it_is_known(tmp_path: Path) -> None:
    state, _ = llms_from_scratch_gpt(qkv_bias=False, n_embd=768, n_layer=3)
    checkpoint = load_checkpoint(str(save(tmp_path / "model.pth", state)))
    assert checkpoint.config.to_dict()["n_head"] == 12
    assert any("n_head taken as 12" in note for note in checkpoint.notes)


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    """Of chapter 6: two classes for a head."""
    state, _ = llms_from_scratch_gpt(qkv_bias=True)
    state |= {"out_head.weight": torch.zeros(2, 30), "out_head.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"(?s)mis-shaped\s+lm_head\.weight.*|unexpected\s+lm_head\.bias"):
        load_checkpoint(str(save(tmp_path / "review_classifier.pth", state)), n_head=3)


def test_a_missing_block_and_an_incomplete_bias_are_told(tmp_path: Path) -> None:
    state, _ = llms_from_scratch_gpt(qkv_bias=True)
    del state["trf_blocks.1.att.W_key.bias"]
    state = {name: weight for name, weight in state.items() if not name.startswith("trf_blocks.0.")}
    with pytest.raises(CheckpointError, match=r"(?s)missing\s+transformer\.h\.0.*unexpected.*W_query\.bias"):
        load_checkpoint(str(save(tmp_path / "model.pth", state)), n_head=3)


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama_model(kind: str, norm: str, **config: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    model = theirs(kind, **config)
    names = {pattern: target.replace("NORM", norm) for pattern, target in LLMS_FROM_SCRATCH_LLAMA.items()}
    return model, renamed(weights_of(model), names)


@torch.no_grad()
def test_a_llama3_model_is_the_books_llama(tmp_path: Path) -> None:
    model, state = llama_model(
        "Llama", "weight", head_dim=6, num_attention_heads=5, num_key_value_heads=5, rope_parameters=LLAMA3_SCALING
    )
    checkpoint = load_checkpoint(str(save(tmp_path / "llama.pth", state)), n_head=5, block_size=64)
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert isinstance(checkpoint.config.to_dict()["rope_scaling"], dict)
    with pytest.raises(CheckpointError, match="pass n_head"):
        load_checkpoint(str(tmp_path / "llama.pth"))


@torch.no_grad()
def test_a_qwen3_model_says_its_heads(tmp_path: Path) -> None:
    model, state = llama_model(
        "Qwen3", "scale", rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    )
    checkpoint = load_checkpoint(str(save(tmp_path / "qwen.pth", state)), block_size=64)
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert checkpoint.assumed["n_head"] == "checkpoint" and checkpoint.config.to_dict()["head_size"] == 10


def test_a_mixture_of_experts_is_named(tmp_path: Path) -> None:
    _, state = llama_model("Qwen3", "scale")
    state["trf_blocks.0.ff.gate.weight"] = torch.zeros(4, 30)
    with pytest.raises(UnknownCheckpointError, match="mixture of experts"):
        load_checkpoint(str(save(tmp_path / "moe.pth", state)))


def test_the_books_scaling_is_llama_3_2s() -> None:
    from gptexport.checkpoints.formats.llms_from_scratch_llama import _LLAMA

    assert _LLAMA["rope_scaling"] == Llama3(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192
    )
