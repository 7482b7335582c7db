"""Llama's, Mistral's, Qwen3's, GPT-NeoX's and nanochat's shapes at every target: the logits of an implementation that
shares no code with gptexport, and greedy text that is the same with a cache and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.engine import build_engine, make_profiles, open_library, open_source
from gptexport.export import export_onnx
from tests.support.greedy import agreement
from tests.support.llama_builders import LLAMA3, theirs, tiny_neox
from tests.support.nanochat_builders import GENERATIONS, H, K, V, nanochat, state_of
from tests.support.nanochat_reference import nanochat_logits

Logits = Callable[[np.ndarray], np.ndarray]  # ids (B,T) to (B,T,V) in float64
HEADS = ["logits", "last", "score", "decode"]


@dataclass(frozen=True)
class Case:
    """A checkpoint, what it computes by somebody else's code, and a text length at which windows begin to cut."""

    path: str
    reference: Logits
    vocab_size: int
    length: int


def of_transformers(make: Callable[..., Any], **config: Any) -> Callable[[Path], Case]:
    def case(folder: Path) -> Case:
        model = make(num_hidden_layers=2, max_position_embeddings=40, **config)
        model.save_pretrained(folder / "hf")
        exact = model.double()

        @torch.no_grad()
        def reference(ids: np.ndarray) -> np.ndarray:
            logits: np.ndarray = exact(torch.from_numpy(ids)).logits.numpy()
            return logits

        return Case(str(folder / "hf"), reference, 97, 8)

    return case


def llama(kind: str, **config: Any) -> Callable[[Path], Case]:
    """With heads of a size that the fused kernels take."""
    return of_transformers(lambda **fields: theirs(kind, **fields), hidden_size=48, head_dim=16, **config)


def of_nanochat(since: str, length: int) -> Callable[[Path], Case]:
    def case(folder: Path) -> Case:
        channels, lambdas, smear, facts = GENERATIONS[since]
        state = state_of(channels, lambdas, smear)
        pattern: dict[str, Any] = {} if lambdas else {"window_pattern": ...}
        path = nanochat(folder / "d5", state, **pattern)
        weights: dict[str, Any] = {name: weight.double().numpy() for name, weight in state.items()}
        return Case(
            str(path), lambda ids: nanochat_logits(weights, ids, facts, n_head=H, n_kv_head=K)[..., :V], V, length
        )

    return case


CASES: dict[str, Callable[[Path], Case]] = {
    "Llama": llama("Llama"),
    "Llama 3.1": llama("Llama", rope_parameters=LLAMA3, tie_word_embeddings=True),
    "Mistral": llama("Mistral", sliding_window=7),
    "Qwen3": llama("Qwen3", tie_word_embeddings=True, num_key_value_heads=6),
    "GPT-NeoX": of_transformers(tiny_neox),
    "nanochat 2025-10-13": of_nanochat("2025-10-13", 200),
    "nanochat 2026-01-11": of_nanochat("2026-01-11", 200),
    "nanochat 2026-01-16": of_nanochat("2026-01-16", 200),
    "nanochat 2026-03-09": of_nanochat("2026-03-09", 256),
    "nanochat 2026-03-14": of_nanochat("2026-03-14", 128),
}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def marked(*quick: tuple[str, str], of: list[str]) -> list[Any]:
    """Each case with each of `of`; all but `quick` are slow."""
    pairs = [(case, other) for case in CASES for other in of]
    return [pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(
    ("name", "target"),
    marked(("nanochat 2026-03-14", "cpu"), of=["portable", "cpu"]),
)
def test_logits_and_greedy_text(name: str, target: str, tmp_path: Path) -> None:
    """Eager and the graph err at most twice as much as eager's own rounding, against the other implementation."""
    case = CASES[name](tmp_path)
    checkpoint = load_checkpoint(case.path)
    done = export_onnx(checkpoint, tmp_path / "gpt", target=target)
    assert list(done.manifest.graphs) == HEADS and not done.manifest.left_out
    assert all(row["achieved"] == row["expected"] for row in done.manifest.audit.values())
    ids = np.random.default_rng(0).integers(0, case.vocab_size, (2, case.length + 30))
    expected = case.reference(ids)
    with torch.no_grad():
        eager = checkpoint.model(torch.from_numpy(ids)).numpy()
        exact = checkpoint.model.double()(torch.from_numpy(ids)).numpy()
    checkpoint.model.float()
    noise = rms(eager - exact)
    assert rms(eager - expected) <= 2 * noise and noise <= 2e-6 * rms(expected)
    prompts = [ids[0, :length] for length in (case.length - 3, 1, case.length + 2, 5)]
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        logits = gpt.logits(ids)
        assert rms(logits - expected) <= 2 * noise
        np.testing.assert_allclose(gpt.last_logits(ids), logits[:, -1], atol=1e-4)
        of_next = torch.from_numpy(logits[:, :-1]).log_softmax(-1).gather(2, torch.from_numpy(ids[:, 1:, None]))
        np.testing.assert_allclose(gpt.score(ids).logprobs, of_next[..., 0].numpy(), atol=1e-4)
        assert gpt.why_slow is None
        found = agreement(checkpoint.model, prompts, gpt.generate(prompts, max_new_tokens=24, temperature=0))
    assert found.wrong == 0 and found.tokens >= 80


OTHERS: dict[str, dict[str, Any]] = {
    "cuda float16": {"target": "cuda", "dtype": "float16"},
    "cuda bfloat16": {"target": "cuda", "dtype": "bfloat16"},
    "int8": {"target": "cpu", "quantize": "int8"},
}


@pytest.mark.parametrize(
    ("name", "other"), marked(("Llama", "cuda float16"), ("nanochat 2026-03-14", "cuda bfloat16"), of=list(OTHERS))
)
def test_what_cannot_be_compared_here_is_whole_and_checked(name: str, other: str, tmp_path: Path) -> None:
    """All rewrites match, and the export's own check against eager, in float32 where the CPU lacks the dtype, holds."""
    done = export_onnx(load_checkpoint(CASES[name](tmp_path).path), tmp_path / "gpt", **OTHERS[other])
    assert list(done.manifest.graphs) == HEADS and not done.manifest.left_out
    assert all(row["achieved"] == row["expected"] for row in done.manifest.audit.values())
    if OTHERS[other].get("quantize"):
        with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
            assert len(gpt.generate([[3, 5]], max_new_tokens=8, temperature=0)[0]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama 3.1", "Qwen3", "nanochat 2025-10-13", "nanochat 2026-03-14"])
def test_tensorrt_builds(name: str, tmp_path: Path) -> None:
    bundle = export_onnx(load_checkpoint(CASES[name](tmp_path).path), tmp_path / "gpt", dtype="bfloat16").path
    library, source = open_library("tensorrt-rtx"), open_source(bundle)
    profiles = make_profiles([], [], (), block_size=source.block_size)
    engine = build_engine(library, source, tmp_path / "gpt.engine", profiles=profiles, targets=("8.9",))
    assert engine.path.stat().st_size > 0
