"""The measuring itself: what is paired with what, and what a FLOP is."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import gptexport.bench as bench
from gptexport.bench_chart import speed_chart
from gptexport.config import GPTConfig
from gptexport_runtime import ExecutionError
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.fake_engine import write_engine


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
    assert bench.forward_flops(config, 1, 1) == 2 * (weights + 12 * 2 * 768)
    assert bench.forward_flops(config, 3, 1024) == pytest.approx(3 * 2 * (1024 * weights + 12 * 768 * 1024 * 1025))
    assert config.parameters == 124_439_808


def test_sgemm_rate_is_a_rate() -> None:
    assert 1e8 < bench.sgemm_rate(1, tries=2) < 1e14


def test_the_command_times_both(cli: Cli, tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    assert cli("onnx", ckpt, "-o", tmp_path / "gpt", "-q").code == 0
    ran = cli(
        *("bench", tmp_path / "gpt", "--against", ckpt, "--rounds", 1, "--shapes", "1x1,2x999", "--json", "-q"),
        *("--plot", tmp_path / "speed.svg"),
    )
    data = json.loads(ran.out)
    assert ran.code == 0
    assert [(t["name"], t["shape"]) for t in data["timings"]] == [
        ("gptexport", [1, 1]),
        ("eager", [1, 1]),
        ("gptexport", [2, 17]),  # clamped to block_size
        ("eager", [2, 17]),
    ]
    assert all(1e6 < t["peak_bytes"] < 1e9 for t in data["timings"] if t["name"] == "gptexport")
    assert all(0 < t["gemm_fraction"] < 1.5 for t in data["timings"])
    assert cli("bench", tmp_path / "gpt", "--rounds", 0).code == 2
    assert cli("bench", tmp_path / "gpt", "--plot", tmp_path / "nowhere" / "speed.svg").code == 2
    svg = ElementTree.parse(tmp_path / "speed.svg")
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("eager") == words.count("gptexport") == 2 and "2×17" in words


def test_flops_are_known_without_the_checkpoint(cli: Cli, tmp_path: Path) -> None:
    """The bundle tells its sizes."""
    assert cli("onnx", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "gpt", "-q").code == 0
    ran = cli("bench", tmp_path / "gpt", "--rounds", 1, "--shapes", "1x3", "-q")
    assert ran.code == 0 and re.search(r"1x3 .* \d+ % +\d+ MB", ran.out)


def test_bars_are_as_long_as_their_speeds() -> None:
    row = {"gptexport": (2.0, "1 ms"), "<eager>": (1.0, "2 ms")}
    svg = ElementTree.fromstring(speed_chart("A & B", "<eager>", {"1×1": row}))
    widths = [float(bar.attrib["width"]) for bar in svg.iter("{http://www.w3.org/2000/svg}rect") if "y" in bar.attrib]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)


def test_an_engine_is_timed_on_a_gpu(cli: Cli, tmp_path: Path) -> None:
    """And is refused as one, not as a file that the CPU cannot open."""
    engine = write_engine(tmp_path)
    ran = cli("bench", engine)
    assert ran.code in (1, 4) and ran.err != cli("bench", engine, "--device", "cpu").err


def test_memory_of_what_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="does not exist"):
        bench.memory_of(tmp_path / "none", "cpu", 1, (1, 1))
