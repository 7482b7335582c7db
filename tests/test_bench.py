"""The measuring itself: what is paired with what, and what a FLOP is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_nanogpt
from conftest import Ran

import gptexport.bench as bench
from gptexport.config import GPTConfig


def test_ratios_are_paired_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down tenfold halfway: the ratio does not notice."""
    clock = 0.0
    ran: list[str] = []

    def candidate(name: str, cost: float) -> Callable[[np.ndarray], None]:
        def run(ids: np.ndarray) -> None:
            nonlocal clock
            assert ids.shape == (2, 3)
            ran.append(name)
            clock += cost * (10 if len(ran) > 6 else 1)

        return run

    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(bench.time, "sleep", lambda _: None)
    monkeypatch.setattr(bench, "sgemm_rate", lambda: 1e9)
    candidates = {"fast": candidate("fast", 1.0), "slow": candidate("slow", 4.0)}
    fast, slow = bench.measure(candidates, [(2, 3)], vocab_size=5, baseline="slow", rounds=5)
    assert ran == ["fast", "slow"] * 6
    assert (fast.speed_ratio, slow.speed_ratio) == (4.0, 1.0)
    assert (fast.fastest, fast.median, fast.tokens_per_second) == (1.0, 10.0, 0.6)
    assert fast.gemm_fraction is None


def test_flops_of_gpt2() -> None:
    """12 layers of 12 C² weights and the head, twice each per token; attention's causal half."""
    config = GPTConfig()
    weights = 12 * 12 * 768**2 + 768 * 50257
    assert bench.forward_flops(config, 1, 1) == 2 * (weights + 12 * 2 * 768)
    assert bench.forward_flops(config, 3, 1024) == pytest.approx(3 * 2 * (1024 * weights + 12 * 768 * 1024 * 1025))
    assert config.parameters == 124_439_808


def test_sgemm_rate_is_a_rate() -> None:
    assert 1e8 < bench.sgemm_rate(size=256, tries=2) < 1e14


def test_the_command_times_both(gptexport: Callable[..., Ran], tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    assert gptexport("onnx", ckpt, "-o", tmp_path / "gpt", "-q").code == 0
    ran = gptexport(
        "bench", tmp_path / "gpt", "--against", ckpt, "--rounds", 1, "--shapes", "1x1,2x999", "--json", "-q"
    )
    data = json.loads(ran.out)
    assert ran.code == 0
    assert [(t["name"], t["shape"]) for t in data["timings"]] == [
        ("gptexport", [1, 1]),
        ("eager", [1, 1]),
        ("gptexport", [2, 17]),  # clamped to block_size
        ("eager", [2, 17]),
    ]
    assert gptexport("bench", tmp_path / "gpt", "--rounds", 0).code == 2
