"""nanochat, generation by generation, against float64 numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from gptexport.architectures.nanochat import Nanochat, NanochatConfig
from tests.support.nanochat_reference import Facts, nanochat_logits
from tests.support.nanogpt_reference import relative_rms

SIZES: dict[str, Any] = {"block_size": 40, "vocab_size": 83, "n_layer": 5, "n_head": 4, "n_kv_head": 2, "n_embd": 48}
T = 40
IDX = torch.arange(2 * T).reshape(2, T) * 29 % 83
PLAIN = {"lambdas": False, "value_channels": 0, "smear": False, "backout": False}
# by the month in which the training code came: our config, and what the description says of it
GENERATIONS: dict[str, tuple[dict[str, Any], Facts]] = {
    "2025-10": (
        {**PLAIN, "rope_base": 1e4, "qk_gain": 1.0},
        Facts(rope_base=1e4, qk_gain=1.0, value_gain=0.0, windows=(40,) * 5, softcap=15.0),
    ),
    "2026-01, lambdas": (
        {**PLAIN, "lambdas": True, "rope_base": 1e4, "qk_gain": 1.0, "windows": (21, 21, None)},
        Facts(rope_base=1e4, qk_gain=1.0, value_gain=0.0, windows=(20, 20, 40, 20, 40), softcap=15.0),
    ),
    "2026-01, value embeddings": (
        {
            **PLAIN,
            "lambdas": True,
            "value_channels": 32,
            "value_gain": 2.0,
            "rope_base": 1e4,
            "qk_gain": 1.0,
            "windows": (21,),
        },
        Facts(rope_base=1e4, qk_gain=1.0, value_gain=2.0, windows=(20, 20, 20, 20, 40), softcap=15.0),
    ),
    "2026-03-02, softcap 20": (
        {
            **PLAIN,
            "lambdas": True,
            "value_channels": 32,
            "value_gain": 2.0,
            "rope_base": 1e4,
            "qk_gain": 1.0,
            "softcap": 20.0,
        },
        Facts(rope_base=1e4, qk_gain=1.0, value_gain=2.0, windows=(40,) * 5, softcap=20.0),
    ),
    "2026-03-09": (
        {**PLAIN, "lambdas": True, "value_channels": 12, "qk_gain": 1.15, "windows": (15, None)},
        Facts(rope_base=1e5, qk_gain=1.15, value_gain=3.0, windows=(14, 40, 14, 40, 40), softcap=15.0),
    ),
    "2026-03-14": (
        {"windows": (11, 11, 11, None)},
        Facts(rope_base=1e5, qk_gain=1.2, value_gain=3.0, windows=(10, 10, 10, 40, 40), softcap=15.0),
    ),
}


def randomized(config: NanochatConfig, seed: int = 0) -> Nanochat:
    """Weights large enough that every part shows in the logits, and the softcap bends them."""
    model = Nanochat(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 1.5 if name == "lm_head.weight" else 0.2
            if name.endswith(("lambdas", "lambda")) or "gate" in name:
                scale = 0.7
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model


def expected_of(model: Nanochat, facts: Facts) -> torch.Tensor:
    weights: Mapping[str, Any] = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    c = model.config
    return torch.from_numpy(nanochat_logits(weights, IDX.numpy(), facts, n_head=c.n_head, n_kv_head=c.n_kv_head))


@torch.no_grad()
@pytest.mark.parametrize("generation", GENERATIONS)
def test_logits_are_those_of_the_description(generation: str) -> None:
    """With T beyond every window."""
    fields, facts = GENERATIONS[generation]
    model = randomized(NanochatConfig(**SIZES, **fields))
    expected = expected_of(model, facts)
    assert relative_rms(model(IDX), expected) <= 2e-6
    assert np.abs(expected.numpy()).max() > 0.9 * facts.softcap
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters


NOW = GENERATIONS["2026-03-14"]
WRONG: dict[str, dict[str, Any]] = {
    "rope base": {"rope_base": 1e4},
    "gain of queries and keys": {"qk_gain": 1.15},
    "gain of the value gate": {"value_gain": 2.0},
    "softcap": {"softcap": 20.0},
    "window one wider": {"windows": (12, 12, 12, None)},
    "no windows": {"windows": ()},
}


@torch.no_grad()
@pytest.mark.parametrize("fault", WRONG)
def test_another_choice_shows_in_the_logits(fault: str) -> None:
    model = randomized(NanochatConfig(**SIZES, **NOW[0]))
    other = Nanochat(NanochatConfig(**{**SIZES, **NOW[0], **WRONG[fault]})).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert relative_rms(other(IDX), expected_of(model, NOW[1])) > 1e-4


@torch.no_grad()
def test_turning_the_other_way_round_is_another_model() -> None:
    model = randomized(NanochatConfig(**SIZES, **NOW[0]))
    model.sin.neg_()
    assert relative_rms(model(IDX), expected_of(model, NOW[1])) > 1e-2


@torch.no_grad()
def test_one_token_has_none_before_it() -> None:
    """A text of one token has no smear; the first of a longer one neither."""
    model = randomized(NanochatConfig(**SIZES, **NOW[0]))
    assert relative_rms(model(IDX[:, :1]), expected_of(model, NOW[1])[:, :1]) <= 2e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"n_head": 5}, "n_embd 48 over n_head 5 heads is not an even number"),
        ({"n_head": 16}, "n_embd 48 over n_head 16 heads is not an even number"),
        ({"softcap": 0}, "softcap is 0"),
        ({"value_channels": -1}, "value_channels is -1"),
        ({"windows": (0,)}, "windows has 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NanochatConfig(**{**SIZES, **fields})


def test_a_config_survives_json() -> None:
    config = NanochatConfig(**SIZES, **NOW[0])
    assert NanochatConfig(**json.loads(json.dumps(config.to_dict()))) == config
