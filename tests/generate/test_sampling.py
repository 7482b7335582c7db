"""Sampling draws from the distribution that it says, and options leave what they say."""

from __future__ import annotations

import numpy as np
import pytest
from gptexport_runtime.sampling import Sampling, choose, inverse_cdf, random_streams, weights_of

DRAWS = 40_000
LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -8.0, 1.5], np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, None),
        ({"temperature": 0.5}, None),
        ({"temperature": 3.0}, None),
        ({"top_k": 3}, [0, 7, 1]),
        ({"top_p": 0.8}, [0, 7, 1]),
        ({"min_p": 0.3}, [0, 7, 1]),
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.7}, [0, 7, 1]),
    ],
)
def test_draws_follow_the_distribution(options: dict[str, float], kept: list[int] | None) -> None:
    """Pearson's chi-square; 8 tokens at most, so 7 degrees of freedom: above 24.3 once in a thousand, seeds fixed."""
    expected = softmax(LOGITS.astype(np.float64) / options.get("temperature", 1.0))
    if kept is not None:
        expected = np.where(np.isin(np.arange(8), kept), expected, 0)
        expected /= expected.sum()
    streams = random_streams(range(DRAWS), DRAWS)
    drawn = choose(np.tile(LOGITS, (DRAWS, 1)), Sampling(**options), streams, [])  # type: ignore[arg-type]
    counts = np.bincount(drawn, minlength=8)
    assert (counts[expected == 0] == 0).all()
    possible = expected * DRAWS > 5  # as the test wants it; the rest is one class
    rare = [counts[~possible].sum()], [expected[~possible].sum() * DRAWS]
    if rare[1][0] < 1:
        assert rare[0][0] < 8
        rare = [], []
    observed, wanted = np.r_[counts[possible], rare[0]], np.r_[expected[possible] * DRAWS, rare[1]]
    assert chi_square(observed, wanted) < 24.3


def test_one_stream_draws_independently_from_step_to_step() -> None:
    """Pairs of neighbouring draws of one row are as rare as their product: 63 degrees of freedom, 103 at 1 in 1000."""
    flat = np.zeros((1, 8), np.float32)
    streams = random_streams(3, 1)
    drawn = np.array([choose(flat, Sampling(), streams, [])[0] for _ in range(16_000)])
    pairs = np.bincount(drawn[:-1:2] * 8 + drawn[1::2], minlength=64)
    assert chi_square(pairs, np.full(64, 8000 / 64)) < 103


def test_temperature_0_is_the_argmax_and_draws_nothing() -> None:
    class Unused:
        def random(self) -> float:
            raise AssertionError

    logits = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    chosen = choose(logits, Sampling(temperature=0), [Unused()] * 5, [])  # type: ignore[list-item]
    assert chosen.tolist() == logits.argmax(axis=1).tolist() and chosen.dtype == np.int64


def test_the_nucleus_is_that_of_a_whole_sort() -> None:
    """Also where all but a few are far away, and where all are alike."""
    random = np.random.default_rng(1)
    for scale in (0.0, 0.1, 1.0, 10.0):
        logits = (random.normal(size=(20, 500)) * scale).astype(np.float32)
        for top_p in (0.01, 0.5, 0.95, 0.9999):
            kept = weights_of(logits, Sampling(top_p=top_p)) > 0
            for row, found in zip(logits, kept, strict=True):
                p = softmax(row.astype(np.float64))
                order = np.argsort(-p, kind="stable")
                count = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
                assert found.sum() == min(count, 500) and found[order[:count]].all()


def test_repetition_penalty_moves_tokens_that_came_towards_0_or_away() -> None:
    """Once, however often they came: divided where positive, multiplied where negative (arXiv 1909.05858)."""
    logits = np.array([[4.0, -1.0, 3.0, 2.5]], np.float32)
    assert choose(logits, Sampling(temperature=0, repetition_penalty=2.0), [], [np.array([0, 0, 0, 1])])[0] == 2
    assert logits[0].tolist() == [2.0, -2.0, 3.0, 2.5]


def test_the_ends_of_the_distribution() -> None:
    """A token of no weight is never drawn, not even by a number of 0 or the largest below 1."""
    weights = np.array([[0.0, 0.1, 0.0, 0.2, 0.0]] * 2)
    assert inverse_cdf(weights, np.array([0.0, np.nextafter(1, 0)])).tolist() == [1, 3]


def test_ties_at_the_kth_stay() -> None:
    assert (weights_of(np.array([[1, 1, 1, 0]], np.float32), Sampling(top_k=2)) > 0).tolist() == [[True] * 3 + [False]]
