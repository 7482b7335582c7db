"""The Llama-shaped model against transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from gptexport.architectures.llama import Llama, LlamaConfig
from gptexport.architectures.rotary import (
    Linear,
    Llama3,
    Scaling,
    Yarn,
    frequencies_of,
    interleaved_to_halves,
    rotary_tables,
    rotate,
    scaling_of,
    scaling_to_dict,
)
from tests.support.llama_builders import IDX, LLAMA3, YARN, logits_of, theirs
from tests.support.nanogpt_reference import relative_rms

OURS: dict[str, Any] = {
    "block_size": 64,
    "vocab_size": 97,
    "n_layer": 3,
    "n_head": 6,
    "n_kv_head": 2,
    "n_embd": 30,
    "head_size": 10,
    "n_inner": 42,
    "tied": False,
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama": ("Llama", {}, {}),
    "Llama, tied, one key head": (
        "Llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        {"tied": True, "n_kv_head": 1},
    ),
    "Llama, as many key heads as queries": ("Llama", {"num_key_value_heads": 6}, {"n_kv_head": 6}),
    "Llama with biases": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    ),
    "Llama, positions divided": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_scaling": Linear(factor=4.0)},
    ),
    "Llama 3.1's scaling": (
        "Llama",
        {"rope_parameters": LLAMA3},
        {
            "rope_base": 5e5,
            "rope_scaling": Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=32),
        },
    ),
    "YaRN": (
        "Llama",
        {"rope_parameters": YARN},
        {"rope_scaling": Yarn(factor=4.0, original_block_size=16, gain=1.138629436111989)},
    ),
    "Mistral with a window": ("Mistral", {"sliding_window": 7}, {"windows": (7,)}),
    "Mistral with a window of one": ("Mistral", {"sliding_window": 1}, {"windows": (1,)}),
    "Qwen2": (
        "Qwen2",
        {"hidden_size": 36, "head_dim": None},  # the size of a head follows from the width
        {"n_embd": 36, "head_size": 6, "qkv_bias": True},
    ),
    "Qwen2 with windows above": (
        "Qwen2",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {"qkv_bias": True, "windows": (None, 5, 5)},
    ),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True}, {"qk_norm": True, "tied": True}),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str) -> None:
    kind, their_fields, our_fields = CASES[case]
    reference = theirs(kind, **their_fields)
    model = Llama(LlamaConfig(**{**OURS, **our_fields})).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    assert relative_rms(model(IDX), logits_of(reference)) <= 2e-6
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another base": ("Llama", {"rope_base": 10_100.0}),
    "another eps": ("Llama", {"norm_eps": 1e-4}),
    "a window one wider": ("Mistral with a window", {"windows": (8,)}),
    "a window in the first layer too": ("Qwen2 with windows above", {"windows": (5,)}),
    "no scaling": ("Llama 3.1's scaling", {"rope_scaling": None}),
    "cosines without YaRN's gain": (
        "YaRN",
        {"rope_scaling": Yarn(factor=4.0, original_block_size=16, gain=1.0)},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("fault", WRONG)
def test_another_choice_shows_in_the_logits(fault: str) -> None:
    """So that what the test above compares depends on each of these."""
    case, change = WRONG[fault]
    kind, their_fields, our_fields = CASES[case]
    reference = theirs(kind, **their_fields)
    model = Llama(LlamaConfig(**{**OURS, **our_fields, **change})).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    assert relative_rms(model(IDX), logits_of(reference)) > 2e-5


SCALINGS: Mapping[str, tuple[dict[str, Any], Scaling | None]] = {
    "none": ({"rope_type": "default", "rope_theta": 5e5}, None),
    "linear": ({"rope_type": "linear", "rope_theta": 5e5, "factor": 3.0}, Linear(factor=3.0)),
    "llama3": (
        {**LLAMA3, "original_max_position_embeddings": 8192},
        Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192),
    ),
    "yarn": (
        {**YARN, "rope_theta": 5e5, "original_max_position_embeddings": 8192},
        Yarn(factor=4.0, original_block_size=8192, gain=1.138629436111989),
    ),
    "yarn, told in full": (
        {
            **YARN,
            "rope_theta": 5e5,
            "original_max_position_embeddings": 4096,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 1.25,
        },
        Yarn(factor=4.0, original_block_size=4096, beta_fast=24.0, beta_slow=2.0, gain=1.25, truncate=False),
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_tables_are_those_of_transformers_to_the_last_bit(name: str) -> None:
    """Also where positions are so large that the rounding of a frequency shows."""
    parameters, scaling = SCALINGS[name]
    model = theirs("Llama", head_dim=64, rope_parameters=dict(parameters), max_position_embeddings=32768)
    rotary = model.model.rotary_emb
    assert torch.equal(frequencies_of(64, 5e5, scaling), rotary.inv_freq)
    positions = torch.arange(32768)[None]
    their_cos, their_sin = rotary(torch.zeros(1), positions)
    cos, sin = rotary_tables(32768, 64, 5e5, scaling)
    assert torch.equal(cos, their_cos[0, :, :32]) and torch.equal(sin, their_sin[0, :, :32])
    assert scaling is None or scaling_of(scaling_to_dict(scaling) or {}) == scaling


def test_interleaved_projections_turn_alike_once_their_rows_are_in_halves() -> None:
    """Scores of Meta's pairs (2j, 2j+1), by complex numbers, equal those of halves."""
    T, H, D, C = 5, 3, 8, 11
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, C, generator=generator, dtype=torch.float64)
    projections = [torch.randn(H * D, C, generator=generator, dtype=torch.float64) for _ in range(2)]
    cos, sin = (table.double() for table in rotary_tables(T, D, 1e4))
    turns = torch.complex(cos, sin)[:, None]  # (T,1,D/2)
    complex_heads = [torch.view_as_complex((x @ w.t()).view(T, H, D // 2, 2)) * turns for w in projections]
    expected = torch.einsum("ihd,jhd->hij", complex_heads[0], complex_heads[1].conj()).real
    halves = [
        rotate((x @ interleaved_to_halves(w, H).t()).view(1, T, H, D).transpose(1, 2), cos, sin)[0] for w in projections
    ]
    assert torch.allclose(halves[0] @ halves[1].transpose(1, 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_kv_head": 4}, "n_head 6 is not a multiple of n_kv_head 4"),
        ({"head_size": 7}, "head_size 7 is odd"),
        ({"n_inner": 0}, "n_inner is 0"),
        ({"n_layer": True}, "n_layer is True"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_base": float("inf")}, "rope_base is inf"),
        ({"windows": (4, -1)}, "windows has -1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**{**OURS, **fields})


def test_a_config_survives_json() -> None:
    import json

    config = LlamaConfig(**{**OURS, "windows": (None, 5), "rope_scaling": SCALINGS["yarn"][1]})
    assert LlamaConfig(**json.loads(json.dumps(config.to_dict()))) == config
