"""The measuring itself: what is paired with what, and what a FLOP is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gptexport.architectures.gpt2 import GPTConfig, forward_flops
from gptexport.bench.chart import Bar, speed_chart
from gptexport.bench.machine import memory_of, sgemm_rate
from gptexport.bench.measure import Ratio, Side, measure, ratio_of
from gptexport.bench.worker import Burst, Ids, Shape, burst, random_ids, workers
from gptexport_runtime import ArtifactError, ExecutionError


def side(cost: Callable[[], float], preempted: float = 0.0) -> Side:
    """A side whose calls take so many seconds."""

    def run(shape: Shape, *, settle: float, spend: float) -> Burst:
        assert shape == (2, 3)
        return Burst([cost() * (100 if settle == 0 else 1)] * 3, preempted)

    return run


def test_ratios_are_paired_within_rounds_and_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down tenfold halfway: the ratio does not notice."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    paired = {"fast": [1.0, 1.0, 10.0], "slow": [4.0, 4.0, 40.0]}
    assert ratio_of(paired["slow"], paired["fast"]) == Ratio(4.0, 4.0, 4.0, noisy=False)
    fast, slow = measure({"fast": side(lambda: 1.0), "slow": side(lambda: 4.0)}, [(2, 3)], baseline="slow", rounds=5)
    assert (fast.ratio.median, slow.ratio.median) == (4.0, 1.0)
    assert (fast.warm, fast.cold, fast.tokens_per_second) == (1.0, 100.0, 6.0)
    assert fast.gemm_fraction is None and not fast.ratio.noisy


@pytest.mark.parametrize(
    ("own", "preempted"), [([1.0, 1.0, 1.0, 1.0], 500.0), ([1.0, 3.0, 1.0, 3.0], 0.0)], ids=["busy", "far apart"]
)
def test_a_ratio_that_noise_makes_worthless_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, own: list[float], preempted: float
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    costs = iter([1.0, *own, *own])
    sides = {"own": side(lambda: next(costs), preempted), "other": side(lambda: 2.0)}
    assert measure(sides, [(2, 3)], baseline="other", rounds=4)[0].ratio.noisy


def test_what_settles_does_not_count() -> None:
    """The first calls of a burst are slow, as those of a cold program are."""
    calls = 0

    def run(_ids: Ids) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.03 if calls <= 2 else 0.001)

    ids = random_ids((1, 2), 5)
    assert max(burst(run, ids, settle=0.05, spend=0.02).seconds) < 0.02
    calls = 0
    assert len(burst(run, ids, settle=0, spend=0).seconds) == 1


def test_a_side_is_a_process_of_its_own_and_fails_as_itself(tmp_path: Path) -> None:
    with workers(
        {"own": {"side": "session", "artifact": str(tmp_path / "none"), "device": "cpu", "threads": 1}}
    ) as made:
        with pytest.raises(ArtifactError, match="none does not exist"):
            made["own"].ready()
        process = made["own"].process
    assert process.poll() is not None


def test_flops_of_gpt2() -> None:
    """12 layers of 12 C² weights and the head, twice each per token; attention's causal half."""
    config = GPTConfig()
    weights = 12 * 12 * 768**2 + 768 * 50257
    assert forward_flops(config, 1, 1) == 2 * (weights + 12 * 2 * 768)
    assert forward_flops(config, 3, 1024) == pytest.approx(3 * 2 * (1024 * weights + 12 * 768 * 1024 * 1025))
    assert config.parameters == 124_439_808


def test_sgemm_rate_is_a_rate() -> None:
    assert 1e8 < sgemm_rate(1, tries=2) < 1e14


def test_bars_are_as_long_as_their_speeds() -> None:
    row = {"gptexport": Bar(2.0, 1.9, 2.2, 0.001), "<eager>": Bar(1.0, 1.0, 1.0, 0.002)}
    svg = ElementTree.fromstring(speed_chart("A & B", "<eager>", {"1×1": row}))
    widths = [float(bar.attrib["width"]) for bar in svg.iter("{http://www.w3.org/2000/svg}rect") if "y" in bar.attrib]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)


def test_memory_of_what_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="does not exist"):
        memory_of(tmp_path / "none", "cpu", 1, (1, 1))
