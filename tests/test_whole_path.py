"""Checkpoint, export, parity, generated text: whatever the configuration, the artifact is the checkpoint's model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity.check import check_parity
from gptexport_runtime import load
from tests.support.builders import tiny_nanogpt
from tests.support.greedy import agreement


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Of a GPT-2, the smallest of every size among them."""
    n_head = draw(st.integers(1, 4))
    return {
        "n_layer": draw(st.integers(1, 2)),
        "n_head": n_head,
        "n_embd": n_head * draw(st.integers(1, 8)),
        "block_size": draw(st.integers(2, 24)),
        "vocab_size": draw(st.integers(2, 80)),
        "bias": draw(st.booleans()),
        "tied": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


TARGETS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"target": st.sampled_from(["portable", "cpu"]), "graphs": st.sampled_from([None, (), ("decode",)])}
)


def quick(examples: int) -> settings:
    """The same ones in every run."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=slow)


def is_the_same_model(configuration: dict[str, Any], options: dict[str, Any]) -> None:
    B, T, new = 2, configuration["block_size"], configuration["block_size"] // 2
    with TemporaryDirectory() as folder:
        path, out = tiny_nanogpt(Path(folder, "ckpt.pt"), **configuration), Path(folder, "gpt")
        checkpoint = load_checkpoint(str(path))
        export_onnx(checkpoint, out, **options)
        result = check_parity(out, str(path), shapes=[(B, T)], device="cpu")
        assert result.verdict, result.verdict.reasons
        ids = np.random.default_rng(0).integers(0, configuration["vocab_size"], (B, T - new))
        with load(out, "cpu", threads=1, require_parity=True) as session:
            generated = session.generate(ids, temperature=0, max_new_tokens=new)
        found = agreement(checkpoint.model, list(ids), generated)
    assert (found.wrong, found.ties or found.tokens) == (0, found.ties or B * new)


@quick(2)
@given(configurations(), TARGETS)
def test_any_configuration(configuration: dict[str, Any], options: dict[str, Any]) -> None:
    is_the_same_model(configuration, options)


@pytest.mark.slow
@quick(60)
@given(configurations(), TARGETS)
def test_many_configurations(configuration: dict[str, Any], options: dict[str, Any]) -> None:
    is_the_same_model(configuration, options)
