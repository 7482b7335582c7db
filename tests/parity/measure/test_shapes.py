"""Which shapes are looked at."""

from __future__ import annotations

from gptexport.parity.measure.shapes import choose_shape


def test_choose_shape() -> None:
    assert choose_shape([(1, 1), (1, 2), (8, 5), (3, 17), (1, 1024)]) == (8, 5)
    assert choose_shape([(1, 1), (1, 1024)]) == (1, 1024)
    assert choose_shape([(1, 1), (1, 2)]) == (1, 2)
