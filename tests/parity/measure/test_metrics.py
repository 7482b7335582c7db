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


def test_a_vocabulary_of_one_is_measured_too() -> None:
    one = np.array([[[2.0]]])
    stats = compare([(one, one, one + 0.5)])
    assert (stats.actual.rms, stats.expected_rms, stats.expected_spread) == (0.5, 2.0, 0.0)


def test_every_position_knows_its_row_its_place_and_its_id() -> None:
    """Rows of a later draw are counted on."""
    ids = np.arange(12).reshape(2, 2, 3)
    logits = np.zeros((2, 3, 4))
    each = metrics.compare(Draw(ids=of, expected=logits, eager=logits, actual=logits) for of in ids).each
    assert each is not None
    assert each.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert each.t.tolist() == [0, 1, 2] * 4
    assert each.id.tolist() == list(range(12))


def test_the_token_that_came_has_a_probability() -> None:
    """None came after the last of a row, nor where the vocabulary has no such id."""
    logits, actual = np.log([[[0.5, 0.25, 0.25]] * 4]), np.log([[[0.25, 0.5, 0.25]] * 4])
    draw = Draw(ids=np.array([[2, 0, 1, 3]]), expected=logits, eager=logits, actual=actual)
    each = metrics.compare([draw]).each
    assert each is not None
    np.testing.assert_allclose(np.exp(-each.nll), [0.5, 0.25, np.nan, np.nan])
    np.testing.assert_allclose(np.exp(-each.actual_nll), [0.25, 0.5, np.nan, np.nan])


def test_no_row_is_followed_by_the_next_one() -> None:
    logits = np.log([[[0.5, 0.25, 0.25]] * 2] * 2)
    each = metrics.compare([Draw(ids=np.array([[1, 0], [0, 2]]), expected=logits, eager=logits, actual=logits)]).each
    assert each is not None
    np.testing.assert_allclose(np.exp(-each.nll), [0.5, np.nan, 0.25, np.nan])


@pytest.mark.parametrize("V", [2, 3, 50])
def test_the_margin_is_between_the_two_largest(V: int) -> None:
    logits = np.random.default_rng(V).normal(size=(1, 200, V))
    each = compare([(logits, logits, logits)]).each
    assert each is not None
    largest = np.sort(logits, axis=-1)[0, :, -2:]
    assert each.margin.tolist() == (largest[:, 1] - largest[:, 0]).tolist()


def test_the_five_most_probable_are_compared() -> None:
    expected = np.arange(12.0)[None, None]
    actual = expected.copy()
    actual[..., [11, 0]] = actual[..., [0, 11]]
    assert _top5(expected, actual) == [0.8]
    assert _top5(expected[..., :3], expected[..., 2::-1]) == [1.0], "of three there are but three"


def _top5(expected: np.ndarray, actual: np.ndarray) -> list[float]:
    each = compare([(expected, expected, actual)]).each
    assert each is not None
    return each.top5.tolist()


def test_small_logits_have_a_small_peak() -> None:
    assert compare([(EXPECTED / 30, EXPECTED, EXPECTED)]).expected_max == 0.1


@pytest.mark.parametrize(
    ("logits", "error", "edge"), [(2.0, 0.2, -1.0), (0.0, 0.1, -1.0), (1.0, 0.0, -10.0), (1.0, 1e9, 1.75)]
)
def test_errors_are_counted_by_their_size_against_the_logits(logits: float, error: float, edge: float) -> None:
    """In quarters of a decade from 1e-10 to 100; of logits that are all zero, as they are. Beyond counts at the end."""
    expected = np.full((1, 2, 3), logits)
    eager, actual = compare([(expected, expected, expected + error * 1.01)]).histogram
    assert len(actual) == 48 and sum(actual) == sum(eager) == eager[0] == 6
    assert actual[round((edge + 10) / 0.25)] == 6


def test_a_single_error_is_counted_by_its_size() -> None:
    one = np.full((1, 1, 1), 2.0)
    assert compare([(one, one, one + 0.3)]).histogram[1][36] == 1, "0.15 of the logits"


def test_of_many_errors_some_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "HISTOGRAM_ELEMENTS", 10)
    expected = np.ones((1, 6, 11))
    assert sum(compare([(expected, expected, expected)]).histogram[1]) == 10
    monkeypatch.setattr(metrics, "HISTOGRAM_ELEMENTS", 66)
    assert sum(compare([(expected, expected, expected)]).histogram[1]) == 66


def test_nan_of_the_model_itself_is_no_error_and_counts_nowhere() -> None:
    """A mask is meant; weights that are damaged are not; where nothing is left there is nothing to compare with."""
    masked, actual = EXPECTED.copy(), EXPECTED + 0.3
    masked[0, 1] = actual[0, 1] = np.nan
    draw = Draw(ids=np.zeros((1, 2), np.int64), expected=masked, eager=masked, actual=actual)
    stats = metrics.compare([draw])
    assert stats.actual.finite and stats.eager.finite and stats.actual.rms == pytest.approx(0.3)
    assert stats.actual.max == pytest.approx(0.3) and stats.actual.kl_mean == pytest.approx(0, abs=1e-15)
    assert stats.expected_rms == pytest.approx(np.sqrt(10 / 3)) and stats.expected_max == 3.0
    assert stats.expected_spread == pytest.approx(np.std([3.0, 1.0, 0.0]))
    assert not metrics.compare([draw], intended=False).eager.finite
    whole = Draw(ids=draw.ids, expected=EXPECTED, eager=EXPECTED, actual=EXPECTED)
    assert metrics.compare([whole], intended=False).eager.finite
    nothing = np.full_like(EXPECTED, np.nan)
    assert not compare([(nothing, nothing, nothing)]).eager.finite


def test_a_masked_logit_is_part_of_the_softmax() -> None:
    masked = np.array([[[3.0, 1.0, -np.inf]]])
    stats = compare([(masked, masked, masked + np.array([0.0, 1.0, 0.0]))])
    p, q = np.exp([3.0, 1.0]), np.exp([3.0, 2.0])
    p, q = p / p.sum(), q / q.sum()
    assert stats.actual.kl_mean == pytest.approx(float((p * np.log(p / q)).sum()))
    assert stats.flip_margins == ()


def test_largest_difference() -> None:
    one = np.array([1.0, np.nan, np.inf, -np.inf])
    assert metrics.largest_difference(one, one + np.array([0.5, 0, 0, 0])) == 0.5
    assert metrics.largest_difference(one, -one) == metrics.largest_difference(one, np.zeros(4)) == np.inf
    assert metrics.largest_difference(one[:0], one[:0]) == 0.0
