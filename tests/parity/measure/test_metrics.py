"""The numbers, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gptexport.parity.measure import metrics
from gptexport.parity.measure.metrics import Draw, ShapeStats

EXPECTED = np.array([[[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]]])  # (1,2,3); margins 2 and 0.5


def compare(draws: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> ShapeStats:
    """Of (expected, eager, actual), whatever the ids."""
    return metrics.compare(
        Draw(ids=np.zeros(e.shape[:2], np.int64), expected=e, eager=g, actual=a) for e, g, a in draws
    )


def actual_of(*errors: float) -> np.ndarray:
    return EXPECTED + np.array(errors).reshape(1, 2, 3)


def test_errors_are_rms_and_max() -> None:
    eager, actual = actual_of(0.1, 0, 0, 0, 0, 0), actual_of(0, 0.3, 0, 0, 0, -0.4)
    stats = compare([(EXPECTED, eager, actual)])
    assert stats.shape == (1, 2) and stats.positions == 2
    assert stats.eager.rms == pytest.approx(0.1 / np.sqrt(6))
    assert stats.actual.rms == pytest.approx(0.5 / np.sqrt(6))
    assert stats.eager.max == pytest.approx(0.1) and stats.actual.max == pytest.approx(0.4)
    assert stats.expected_rms == pytest.approx(np.sqrt((9 + 1 + 4 + 2.25) / 6))
    assert stats.expected_max == 3.0
    centred = np.array([3 - 4 / 3, 1 - 4 / 3, -4 / 3, -3.5 / 3, 2 - 3.5 / 3, 1.5 - 3.5 / 3])
    assert stats.expected_spread == pytest.approx(np.sqrt(np.mean(centred**2)))


def test_kl_is_of_the_reference_against_the_candidate() -> None:
    actual = actual_of(0, 1, 0, 0, 0, 0)
    p, q = np.exp([3.0, 1.0, 0.0]), np.exp([3.0, 2.0, 0.0])
    p, q = p / p.sum(), q / q.sum()
    by_hand = float((p * np.log(p / q)).sum()) / 2  # the second position has none
    assert compare([(EXPECTED, EXPECTED, actual)]).actual.kl_mean == pytest.approx(by_hand)


def test_a_shift_of_all_logits_has_no_kl_but_an_error() -> None:
    stats = compare([(EXPECTED, EXPECTED, EXPECTED + 5)])
    assert stats.actual.kl_mean == pytest.approx(0, abs=1e-15)
    assert stats.actual.rms == pytest.approx(5)


def test_flips_carry_the_margin_of_the_reference() -> None:
    stats = compare([(EXPECTED, EXPECTED, actual_of(0, 0, 0, 0, 0, 0.7))])
    assert stats.flip_margins == (0.5,)
    assert stats.top1_agreement == 0.5
    assert compare([(EXPECTED, EXPECTED, actual_of(-9, 0, 0, 0, -9, 0))]).flip_margins == (2.0, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said(value: float) -> None:
    stats = compare([(EXPECTED, EXPECTED, actual_of(0, 0, value, 0, 0, 0))])
    assert not stats.actual.finite and stats.eager.finite
    assert stats.actual.rms == stats.actual.max == stats.actual.kl_mean == np.inf


def test_draws_are_pooled() -> None:
    one, two = actual_of(0.3, 0, 0, 0, 0, 0), actual_of(0, 0, 0.4, 0, 0, 0)
    stats = compare([(EXPECTED, EXPECTED, one), (EXPECTED, EXPECTED, two)])
    assert stats.positions == 4
    assert stats.actual.rms == pytest.approx(0.5 / np.sqrt(12))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    expected, eager, actual = (
        draw.normal(size=(3, 7, 11)) + draw.normal(size=(3, 7, 11)) * noise for noise in (0, 1e-3, 1)
    )
    whole = compare([(expected, eager, actual)])
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", 30)
    parts = compare([(expected, eager, actual)])
    assert parts.flip_margins == whole.flip_margins and len(whole.flip_margins) > 3
    for name in ("rms", "max", "kl_mean"):
        assert getattr(parts.actual, name) == pytest.approx(getattr(whole.actual, name), rel=1e-12)


def test_a_vocabulary_of_one() -> None:
    """Nothing can flip, and softmax says 1 whatever the logit."""
    one = EXPECTED[..., :1]
    stats = compare([(one, one, one + 1)])
    assert stats.actual.kl_mean == 0 and stats.top1_agreement == 1 and stats.actual.rms == 1
