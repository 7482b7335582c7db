"""The choice: the fastest within the bounds, the frontier, and what noise leaves of both."""

from __future__ import annotations

import pytest

from gptexport.bench.measure import Ratio
from gptexport.errors import ExportError
from gptexport.tune.choose import Bounds, Measurement, frontier, in_doubt, ranked


def measured(
    name: str, *, kl: float, speed: float, memory: int = 100, parity: bool = True, noisy: bool = False
) -> Measurement:
    ratio = Ratio(speed, 0.95 * speed, 1.05 * speed, noisy)
    return Measurement(
        name=name, kl=kl, noise_ratio=1.0, parity=parity, seconds=1 / speed, ratio=ratio, memory=memory, disk=10
    )


WIDE = measured("wide", kl=1e-13, speed=1.0, memory=400)
SLOW = measured("slow", kl=1e-7, speed=0.5)
INT8 = measured("int8", kl=1e-3, speed=3.0, memory=150)
INT4 = measured("int4", kl=1e-2, speed=3.05)
WRONG = measured("wrong", kl=1e-14, speed=9.0, parity=False)
BROKEN = measured("broken", kl=float("nan"), speed=9.0)
ALL = [WIDE, SLOW, INT8, INT4, WRONG, BROKEN]


@pytest.mark.parametrize(
    ("bounds", "fastest"),
    [
        (Bounds(max_kl=1.0), INT4),
        (Bounds(max_kl=5e-3), INT8),
        (Bounds(max_kl=1e-9), WIDE),
        (Bounds(max_kl=1e-6, max_memory=200), SLOW),
    ],
)
def test_the_fastest_within_the_bounds(bounds: Bounds, fastest: Measurement) -> None:
    assert ranked(ALL, bounds)[0] is fastest


def test_nothing_within_the_bounds_is_refused_with_every_reason() -> None:
    with pytest.raises(ExportError, match=r"none of 6 .* int8: its KL is 0.001, above 1e-14; .* wrong: it misses"):
        ranked(ALL, Bounds(max_kl=1e-14, max_memory=50))


def test_the_frontier_is_what_none_beats_in_both() -> None:
    assert frontier([INT4, SLOW, BROKEN, WIDE, INT8]) == [WIDE, INT8, INT4]


def test_what_noise_does_not_tell_from_the_fastest() -> None:
    assert in_doubt([INT4, INT8, WIDE]) == [INT8]
    assert in_doubt([measured("fast", kl=0, speed=9, noisy=True), INT8]) == [INT8]
    assert in_doubt([INT8, WIDE]) == []
