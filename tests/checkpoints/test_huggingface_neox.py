"""Hugging Face folders of GPT-NeoX, as save_pretrained writes them and as Pythia's are on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError
from tests.support.llama_builders import IDX, logits_of, tiny_neox
from tests.support.nanogpt_reference import relative_rms

CASES: dict[str, dict[str, Any]] = {
    "as Pythia": {},
    "one after the other": {"use_parallel_residual": False},
    "tied, without biases, tanh": {
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "gelu_new",
        "intermediate_size": 50,
    },
    "stretched, whole heads": {
        "rope_parameters": {
            "rope_type": "linear",
            "factor": 2.0,
            "rope_theta": 500.0,
            "partial_rotary_factor": 1.0,
        }
    },
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    model = tiny_neox(**CASES[case])
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(str(tmp_path))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert (checkpoint.format, checkpoint.architecture.name, checkpoint.block_size) == ("huggingface", "neox", 64)
    info = describe_checkpoint(str(tmp_path))
    assert info.readable and info.parameters == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_pythias_own_folders_are_read(tmp_path: Path) -> None:
    """The head is called embed_out, rotary_pct is a field of its own, masks are stored."""
    model = tiny_neox()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    head = next(name for name in weights if name.startswith(("lm_head", "embed_out")))
    weights["embed_out.weight"] = weights.pop(head)
    weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8)
    weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    weights["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.4, "rotary_emb_base": 10000}))
    assert relative_rms(load_checkpoint(str(tmp_path)).model(IDX), logits_of(model)) <= 2e-6


@torch.no_grad()
def test_a_quarter_of_a_head_turns_where_no_share_is_told(tmp_path: Path) -> None:
    quarter = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    model = tiny_neox(hidden_size=48, rope_parameters=quarter)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = {name: v for name, v in json.loads(file.read_text()).items() if name != "rope_parameters"}
    file.write_text(json.dumps(config))
    assert relative_rms(load_checkpoint(str(tmp_path)).model(IDX), logits_of(model)) <= 2e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 0}, "num_attention_heads|modulo|division"),
        ({"num_attention_heads": "3"}, "unsupported operand"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.3}}, "rotary_size is 3"),
        ({"use_parallel_residual": 1}, "use_parallel_residual is 1"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map names the repository's own code"),
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, "expected GPTNeoXForCausalLM"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    tiny_neox().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))
