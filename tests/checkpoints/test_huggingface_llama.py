"""Hugging Face folders of Llama, Mistral, Qwen2 and Qwen3, as save_pretrained writes them."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.llama_builders import IDX, LLAMA3, YARN, logits_of, theirs
from tests.support.nanogpt_reference import relative_rms

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Llama without key heads of its own": (
        "Llama",
        {"hidden_size": 36, "num_key_value_heads": None, "head_dim": None},
    ),
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}},
    ),
    "Llama, dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "Llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral with a window": ("Mistral", {"sliding_window": 7}),
    "Qwen2": ("Qwen2", {"hidden_size": 36, "head_dim": None}),
    "Qwen2 with windows and YaRN": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "rope_parameters": YARN,
        },
    ),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "Qwen3 with biases": ("Qwen3", {"attention_bias": True}),
    "Qwen3 with layer types": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def folder(path: Path, kind: str = "Llama", **config: Any) -> Any:
    model = theirs(kind, **config)
    model.save_pretrained(path)
    return model


def edit_config(path: Path, **fields: Any) -> None:
    """Set fields of a folder's config.json; `...` leaves one out."""
    file = path / "config.json"
    config = {name: v for name, v in (json.loads(file.read_text()) | fields).items() if v is not ...}
    file.write_text(json.dumps(config))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, config = CASES[case]
    model = folder(tmp_path, kind, **config)
    checkpoint = load_checkpoint(str(tmp_path))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert (checkpoint.format, checkpoint.architecture.name, checkpoint.block_size) == ("huggingface", "llama", 64)
    info = describe_checkpoint(str(tmp_path))
    assert info.readable and info.parameters == sum(p.numel() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_configs_from_before_transformers_5_are_read(tmp_path: Path, old: dict[str, Any]) -> None:
    scaling = old.get("rope_scaling")
    rope = {"rope_type": "default", "rope_theta": 5e5} | ({"rope_type": "linear", "factor": 2.0} if scaling else {})
    model = folder(tmp_path, rope_parameters=rope)
    edit_config(tmp_path, rope_parameters=..., **old)
    assert relative_rms(load_checkpoint(str(tmp_path)).model(IDX), logits_of(model)) <= 2e-6


@torch.no_grad()
def test_what_the_config_leaves_out_is_as_transformers_has_it(tmp_path: Path) -> None:
    model = folder(tmp_path, "Mistral", sliding_window=4096, rms_norm_eps=1e-6, hidden_size=36, head_dim=6)
    gone = ("sliding_window", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "head_dim", "rope_parameters")
    edit_config(tmp_path, **dict.fromkeys(gone, ...))
    assert relative_rms(load_checkpoint(str(tmp_path)).model(IDX), logits_of(model)) <= 2e-6


@torch.no_grad()
def test_windows_begin_at_max_window_layers_where_no_layer_types_are_told(tmp_path: Path) -> None:
    """As in configs from before transformers wrote them."""
    model = folder(tmp_path, "Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    edit_config(tmp_path, layer_types=...)
    checkpoint = load_checkpoint(str(tmp_path))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert checkpoint.config.to_dict()["windows"] == [None, 5, 5]


@torch.no_grad()
def test_the_model_without_its_head_and_stored_tables_are_read(tmp_path: Path) -> None:
    """As LlamaModel saves it when the head is tied, and as transformers before 4.32 did."""
    model = folder(tmp_path, tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model."): weight for name, weight in weights.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    save_file(bare, tmp_path / "model.safetensors")
    assert relative_rms(load_checkpoint(str(tmp_path)).model(IDX), logits_of(model)) <= 2e-6


@torch.no_grad()
def test_it_can_be_shortened(tmp_path: Path) -> None:
    model = folder(tmp_path, "Mistral", sliding_window=7)
    checkpoint = load_checkpoint(str(tmp_path), block_size=8, vocab_size=50)
    assert checkpoint.config.to_dict()["block_size"] == 8
    logits = checkpoint.model(IDX[:, :8] % 50)
    assert relative_rms(logits, model(IDX[:, :8] % 50).logits[..., :50]) <= 2e-6


def test_a_stored_head_that_is_not_the_embedding_is_not_lost(tmp_path: Path) -> None:
    folder(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"config\.json says tie_word_embeddings, but the stored lm_head"):
        load_checkpoint(str(tmp_path))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; gptexport does 'silu'"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rope_type is 'longrope'; gptexport does default"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, r"rope_type is \['yarn'\]"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor is None"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "factor is '4'"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": [1]}, r"rope parameters are \[1\]"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is .*quantized weights"),
    ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map names the repository's own code"),
    ({"attention_bias": "no"}, "attention_bias is 'no'; expected true or false"),
    ({"hidden_size": 31, "head_dim": None}, "hidden_size 31 is not a multiple of num_attention_heads 6"),
    ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected 1 to"),
    ({"num_hidden_layers": 4}, r"missing\s+model\.layers\.3\.\*"),
    ({"max_position_embeddings": "64"}, "max_position_embeddings is '64'"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"intermediate_size": 43}, r"mis-shaped\s+model\.layers\.0\.mlp\.gate_proj\.weight"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    folder(tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types is .*expected a list of 3"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types has chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 3}, "but there is no sliding_window in use"),
    ],
)
def test_layer_types_are_checked(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    folder(tmp_path, "Qwen3")
    edit_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))


def test_a_classifier_is_another_model(tmp_path: Path) -> None:
    folder(tmp_path)
    edit_config(tmp_path, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnknownCheckpointError, match="without the language model's head; expected LlamaForCausalLM"):
        load_checkpoint(str(tmp_path))


def test_rotary_tables_are_not_made_for_a_damaged_block_size(tmp_path: Path) -> None:
    """Nor is the memory of a possible one taken before the weights are compared."""
    folder(tmp_path)
    edit_config(tmp_path, max_position_embeddings=10**9)
    with pytest.raises(CheckpointError, match="max_position_embeddings is 1000000000; expected at most 4194304"):
        load_checkpoint(str(tmp_path))
    edit_config(tmp_path, max_position_embeddings=4_194_304, num_hidden_layers=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; each table would take 84 MB


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
def test_of_tied_weights_either_may_be_stored(tmp_path: Path, kept: str) -> None:
    model = theirs("Llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    tied = weights.pop("model.embed_tokens.weight")
    save_file(weights | {kept: tied}, tmp_path / "hf" / "model.safetensors")
    assert relative_rms(load_checkpoint(str(tmp_path / "hf")).model(IDX), logits_of(model)) <= 2e-6


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "net.", "lit.model."])
def test_names_under_any_wrapper(tmp_path: Path, wrapper: str) -> None:
    model = theirs("Llama")
    model.save_pretrained(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    save_file({wrapper + name: weight for name, weight in weights.items()}, tmp_path / "hf" / "model.safetensors")
    assert relative_rms(load_checkpoint(str(tmp_path / "hf")).model(IDX), logits_of(model)) <= 2e-6


def test_a_text_ends_where_its_config_says(tmp_path: Path) -> None:
    theirs("Llama").save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": [5, 7], "bos_token_id": 1}')
    text = load_checkpoint(str(tmp_path / "hf")).text
    assert (text.eos_token_ids, text.bos_token_id) == ((5, 7), 1)
