"""The measuring itself: what is paired with what, and what a FLOP is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import gptexport.bench as bench
from gptexport.architectures.gpt2 import GPTConfig, forward_flops
from gptexport.bench_chart import speed_chart
from gptexport_runtime import ExecutionError


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

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    monkeypatch.setattr(time, "sleep", lambda _: None)
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
    assert forward_flops(config, 1, 1) == 2 * (weights + 12 * 2 * 768)
    assert forward_flops(config, 3, 1024) == pytest.approx(3 * 2 * (1024 * weights + 12 * 768 * 1024 * 1025))
    assert config.parameters == 124_439_808


def test_sgemm_rate_is_a_rate() -> None:
    assert 1e8 < bench.sgemm_rate(1, tries=2) < 1e14


def test_bars_are_as_long_as_their_speeds() -> None:
    row = {"gptexport": (2.0, "1 ms"), "<eager>": (1.0, "2 ms")}
    svg = ElementTree.fromstring(speed_chart("A & B", "<eager>", {"1×1": row}))
    widths = [float(bar.attrib["width"]) for bar in svg.iter("{http://www.w3.org/2000/svg}rect") if "y" in bar.attrib]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)


def test_memory_of_what_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="does not exist"):
        bench.memory_of(tmp_path / "none", "cpu", 1, (1, 1))
