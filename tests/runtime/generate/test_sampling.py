"""Sampling draws from the distribution that it says, and options leave what they say."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from gptexport_runtime import ExecutionError
from gptexport_runtime.generate.sampling import Sampling, choose, pick, random_streams, tokens_left

DRAWS = 20_000
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
def test_draws_follow_the_distribution(options: dict[str, Any], kept: list[int] | None) -> None:
    """Pearson's chi-square; 8 tokens at most, so 7 degrees of freedom: above 24.3 once in a thousand, seeds fixed."""
    expected = softmax(LOGITS.astype(np.float64) / options.get("temperature", 1.0))
    if kept is not None:
        expected = np.where(np.isin(np.arange(8), kept), expected, 0)
        expected /= expected.sum()
    streams = random_streams(range(DRAWS), DRAWS)
    drawn = choose(np.tile(LOGITS, (DRAWS, 1)), Sampling(**options), streams, [])
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
    chosen = choose(logits, Sampling(temperature=0), [cast(np.random.Generator, Unused())] * 5, [])
    assert chosen.tolist() == logits.argmax(axis=1).tolist() and chosen.dtype == np.int64


def test_the_nucleus_is_that_of_a_whole_sort() -> None:
    """Also where all but a few are far away, and where all are alike: ties of the last stay."""
    random = np.random.default_rng(1)
    for scale in (0.0, 0.1, 1.0, 10.0):
        for logits in (random.normal(size=(20, 900)) * scale).astype(np.float32):
            p = softmax(logits.astype(np.float64))
            falling = np.sort(p)[::-1]
            for top_p in (0.01, 0.5, 0.95, 0.9999):
                least = falling[min(int(np.searchsorted(np.cumsum(falling), top_p)), 899)]
                ids, weights = tokens_left(logits, Sampling(top_p=top_p))
                assert ids.tolist() == np.flatnonzero(p >= least * (1 - 1e-12)).tolist()
                assert np.allclose(weights / weights.sum(), p[ids] / p[ids].sum(), rtol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4, 5, 100, 899, 900, 5000])
def test_the_k_most_likely_are_those_of_a_whole_sort(top_k: int) -> None:
    """Fewer than the blocks that the vocabulary is looked through in, as many, more; some of them in one block."""
    logits = np.random.default_rng(2).normal(size=900).astype(np.float32)
    logits[300:310] += 9
    ids, _ = tokens_left(logits, Sampling(top_k=top_k))
    assert ids.tolist() == sorted(np.argsort(-logits)[:top_k].tolist())


def test_repetition_penalty_moves_tokens_that_came_towards_0_or_away() -> None:
    """Once, however often they came: divided where positive, multiplied where negative (arXiv 1909.05858)."""
    logits = np.array([[4.0, -1.0, 3.0, 2.5]], np.float32)
    assert choose(logits, Sampling(temperature=0, repetition_penalty=2.0), [], [np.array([0, 0, 0, 1])])[0] == 2
    assert logits[0].tolist() == [2.0, -2.0, 3.0, 2.5]


def test_the_ends_of_the_distribution() -> None:
    """A token of no weight is never drawn, not even by a number of 0 or the largest below 1."""
    weights = np.array([0.0, 0.1, 0.0, 0.2, 0.0])
    assert [pick(weights, 0.0), pick(weights, float(np.nextafter(1, 0)))] == [1, 3]


def test_a_large_vocabulary_is_drawn_from_as_a_small_one() -> None:
    """The running sum passes the number at the token that a plain sum says, whichever block it is in."""
    random = np.random.default_rng(3)
    weights = random.exponential(size=1500) * (random.random(1500) < 0.3)
    weights[256:512] = 0  # a block of nothing
    sums = np.cumsum(weights)
    for uniform in [0.0, *random.random(500), float(np.nextafter(1, 0))]:
        at = pick(weights, uniform)
        assert weights[at] > 0
        assert sums[at] >= uniform * sums[-1] * (1 - 1e-12) and sums[at] - weights[at] <= uniform * sums[-1] * (
            1 + 1e-12
        )


def test_rounding_at_the_end_of_a_block_gives_no_token_without_weight() -> None:
    """A block's sum and its running sum round differently; nor have the tokens around its end any weight here."""
    for seed in range(200):
        weights = np.random.default_rng(seed).exponential(size=1024)
        weights[500:520] = 0
        uniform = float(weights[:512].sum() / weights.sum())
        for _ in range(8):
            assert weights[pick(weights, uniform)] > 0
            uniform = float(np.nextafter(uniform, 0))


def test_ties_at_the_kth_stay() -> None:
    assert tokens_left(np.array([1, 1, 1, 0], np.float32), Sampling(top_k=2))[0].tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("error")
def test_a_temperature_near_0_is_greedy() -> None:
    logits = np.array([[3.0, 900.0, -800.0, 899.0]], np.float32)
    assert choose(logits, Sampling(temperature=1e-310), random_streams(0, 1), []).tolist() == [1]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(temperature: float, value: float) -> None:
    """Not a token that nobody chose. A single -inf is a number of a kind: that token never comes."""
    logits = np.array([[1.0, 2.0], [value, value]], np.float32)
    with pytest.raises(ExecutionError, match="NaN or infinity"):
        choose(logits, Sampling(temperature=temperature), random_streams(0, 2), [])
    banned = np.array([[-np.inf, 0.0]] * 50, np.float32)
    assert choose(banned, Sampling(temperature=temperature), random_streams(range(50), 50), []).tolist() == [1] * 50
