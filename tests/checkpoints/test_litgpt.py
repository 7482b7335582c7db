"""LitGPT's folders, written here from the format's description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.format_builders import litgpt
from tests.support.llama_builders import IDX, logits_of, renamed, theirs, tiny_neox, weights_of
from tests.support.nanogpt_reference import relative_rms

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "older, grouped": ({}, {"legacy": True}),
    "as litgpt pretrain saves it": ({}, {"wrapped": True}),
    "interleaved": ({}, {"interleaved": True, "rope_interleave": True}),
    "with biases": ({"attention_bias": True, "mlp_bias": True}, {"bias": True}),
    "older, with biases": ({"attention_bias": True, "mlp_bias": True}, {"bias": True, "legacy": True}),
    "positions divided": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_condense_ratio": 4},
    ),
    "Llama 3.1": (
        {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "original_max_position_embeddings": 32}
            | LLAMA3
        },
        {"rope_adjustments": {"original_max_seq_len": 32} | LLAMA3},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    their_fields, our_fields = CASES[case]
    model = theirs("Llama", **their_fields)
    checkpoint = load_checkpoint(str(litgpt(tmp_path / "final", model, **our_fields)))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert (checkpoint.format, checkpoint.block_size, checkpoint.vocab_size) == ("litgpt", 64, 97)


@torch.no_grad()
def test_normed_queries_and_windows_are_qwens(tmp_path: Path) -> None:
    model = theirs("Qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    fields: dict[str, Any] = {"norm_qk": True, "sliding_window_size": 5, "sliding_window_indices": [0, 1, 1, 1]}
    checkpoint = load_checkpoint(str(litgpt(tmp_path / "final", model, **fields)))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6


@torch.no_grad()
def test_its_file_alone_is_read_with_the_config_beside(tmp_path: Path) -> None:
    model = theirs("Llama")
    path = litgpt(tmp_path / "final", model) / "lit_model.pth"
    assert relative_rms(load_checkpoint(str(path)).model(IDX), logits_of(model)) <= 2e-6
    assert describe_checkpoint(str(path)).readable


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Gemma-2b"}, "whose norms are others"),
        ({"mlp_class_name": "GemmaMLP"}, r"mlp_class_name 'GemmaMLP' \(not 'LLaMAMLP'\)"),
        ({"parallel_residual": ..., "norm_class_name": ...}, "norm_class_name 'LayerNorm'.*parallel_residual True"),
        ({"rotary_percentage": 0.25}, "rotary_percentage 0.25"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ({"n_expert": 8}, "n_expert 8"),
        ({"attention_scores_scalar": 256}, r"attention_scores_scalar 256 \(not head_size 10\)"),
        ({"rope_adjustments": {"factor": 4.0, "beta_fast": 32, "beta_slow": 1}}, "gptexport does a factor alone"),
    ],
)
def test_what_is_not_built_is_refused_by_field(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = litgpt(tmp_path / "final", theirs("Llama"), **fields)
    with pytest.raises(UnknownCheckpointError, match=message):
        load_checkpoint(str(path))
    assert not describe_checkpoint(str(path)).readable


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": ...}, "lacks n_head"),
        ({"padded_vocab_size": ...}, "lacks padded_vocab_size"),
        ({"n_query_groups": 4}, "n_head 6 is not a multiple of n_kv_head 4"),
        ({"bias": "no"}, "bias is 'no'"),
        ({"rope_condense_ratio": "4"}, "rope_condense_ratio is '4'"),
        ({"sliding_window_size": 5, "sliding_window_indices": [1]}, r"sliding_window_indices is \[1\]"),
        ({"n_layer": 2}, r"unexpected\s+model\.layers\.2"),
        ({"head_size": 8}, r"unexpected\s+transformer\.h\.0\.attn\.qkv\.weight"),
    ],
)
def test_a_malformed_config_names_the_field(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = litgpt(tmp_path / "final", theirs("Llama"), **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))


def test_a_missing_or_damaged_config_is_told(tmp_path: Path) -> None:
    path = litgpt(tmp_path / "final", theirs("Llama"))
    config = path / "model_config.yaml"
    config.write_text("a: [1\nb: }")
    with pytest.raises(CheckpointError, match="truncated or corrupt YAML"):
        load_checkpoint(str(path))
    config.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(CheckpointError, match="truncated or corrupt YAML"):
        load_checkpoint(str(path))
    config.write_text("- 1\n")
    with pytest.raises(CheckpointError, match="expected a mapping"):
        load_checkpoint(str(path))
    config.unlink()
    with pytest.raises(CheckpointError, match="no such file; LitGPT saves it beside"):
        load_checkpoint(str(path))


NEOX_NAMES = {
    r"gpt_neox\.embed_in\.weight": "transformer.wte.weight",
    r"lm_head\.weight": "lm_head.weight",
    r"gpt_neox\.final_layer_norm\.(weight|bias)": r"transformer.ln_f.\1",
    r"gpt_neox\.layers\.(\d+)\.input_layernorm\.(weight|bias)": r"transformer.h.\1.norm_1.\2",
    r"gpt_neox\.layers\.(\d+)\.post_attention_layernorm\.(weight|bias)": r"transformer.h.\1.norm_2.\2",
    r"gpt_neox\.layers\.(\d+)\.attention\.query_key_value\.(weight|bias)": r"transformer.h.\1.attn.attn.\2",
    r"gpt_neox\.layers\.(\d+)\.attention\.dense\.(weight|bias)": r"transformer.h.\1.attn.proj.\2",
    r"gpt_neox\.layers\.(\d+)\.mlp\.dense_h_to_4h\.(weight|bias)": r"transformer.h.\1.mlp.fc.\2",
    r"gpt_neox\.layers\.(\d+)\.mlp\.dense_4h_to_h\.(weight|bias)": r"transformer.h.\1.mlp.proj.\2",
}
PYTHIA = {"block_size": 64, "padded_vocab_size": 97, "n_layer": 3, "n_head": 3, "n_embd": 30, "rotary_percentage": 0.4}


@torch.no_grad()
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_pythia_is_transformers_gpt_neox(tmp_path: Path, legacy: bool, parallel: bool) -> None:
    """Its config leaves nearly everything to litgpt's defaults."""
    model = tiny_neox(use_parallel_residual=parallel)
    state = renamed(weights_of(model), NEOX_NAMES)
    for name in [name for name in state if ".attn.attn." in name and not legacy]:
        heads = state.pop(name).unflatten(0, (3, 3, 10))  # (head, part, D)
        state[name.replace(".attn.attn.", ".attn.qkv.")] = heads.transpose(0, 1).flatten(0, 2)
    torch.save(state, tmp_path / "lit_model.pth")
    (tmp_path / "model_config.yaml").write_text(yaml.dump(PYTHIA | {"parallel_residual": parallel}))
    checkpoint = load_checkpoint(str(tmp_path))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert checkpoint.architecture.name == "neox"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared_attention_norm": True}, "shared_attention_norm True"),
        ({"n_query_groups": 1}, "n_query_groups 1"),
        ({"gelu_approximate": "fast"}, "gelu_approximate is 'fast'"),
        ({"rotary_percentage": 0.3}, "rotary_size is 3; expected an even number"),
    ],
)
def test_what_is_no_gpt_neox_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    torch.save({}, tmp_path / "lit_model.pth")
    (tmp_path / "model_config.yaml").write_text(yaml.dump(PYTHIA | fields))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))
