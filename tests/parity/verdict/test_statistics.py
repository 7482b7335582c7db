"""The figures that people know, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptexport.parity.measure.measured import Measured
from gptexport.parity.measure.metrics import Draw, ShapeStats, compare
from gptexport.parity.verdict import judge as module
from gptexport.parity.verdict.gates import changed_gates
from gptexport.parity.verdict.judge import Verdict
from gptexport.parity.verdict.statistics import mean_of, summarize
from gptexport.precision import INT8, Gates

DRAW = np.random.default_rng(0)
IDS = DRAW.integers(0, 11, (3, 6))
EXPECTED = DRAW.normal(size=(3, 6, 11))
EAGER = EXPECTED + 1e-6 * DRAW.normal(size=(3, 6, 11))
ACTUAL = EXPECTED + 0.3 * DRAW.normal(size=(3, 6, 11))
STATS = compare([Draw(ids=IDS, expected=EXPECTED, eager=EAGER, actual=ACTUAL)])


def judge(stats: ShapeStats, gates: Gates, *, real_text: bool = False) -> Verdict:
    return module.judge(Measured(precision=INT8, real_text=real_text, stats=(stats,)), gates)


def drawn(B: int, T: int) -> ShapeStats:
    """A shape of the same kind."""
    expected, noise = DRAW.normal(size=(B, T, 11)), DRAW.normal(size=(B, T, 11))
    ids = DRAW.integers(0, 11, (B, T))
    return compare([Draw(ids=ids, expected=expected, eager=expected + 1e-6 * noise, actual=expected + 0.3 * noise)])


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits)
    return e / e.sum(axis=-1, keepdims=True)


P, Q = softmax(EXPECTED), softmax(ACTUAL)
KL = (P * np.log(P / Q)).sum(axis=-1).ravel()


def test_kl() -> None:
    summary = summarize([STATS], tie=0.0)
    assert summary is not None and summary.positions == 18
    assert summary.kl.mean == pytest.approx(KL.mean()) == pytest.approx(STATS.actual.kl_mean)
    assert summary.kl.se == pytest.approx(KL.std(ddof=1) / np.sqrt(18))
    assert summary.kl_max == pytest.approx(KL.max())
    assert summary.kl_percentiles["50"] == pytest.approx(np.median(KL))
    assert list(summary.kl_percentiles) == ["99.9", "99", "95", "90", "50"]


def test_what_needs_the_token_that_came() -> None:
    """At the last position of a row none came."""
    summary = summarize([STATS], tie=0.0)
    assert summary is not None
    came = IDS[:, 1:, None]
    p, q = (np.take_along_axis(x[:, :-1], came, axis=-1).ravel() for x in (P, Q))
    assert summary.dp_rms is not None and summary.dp_rms.mean == pytest.approx(np.sqrt(np.mean((q - p) ** 2)))
    assert summary.dp_rms.se == pytest.approx(np.std((q - p) ** 2, ddof=1) / np.sqrt(15) / (2 * summary.dp_rms.mean))
    wanted = (99.9, 99, 95, 50, 5, 1, 0.1)
    assert summary.dp_percentiles == pytest.approx({f"{at:g}": np.percentile(q - p, at) for at in wanted})
    assert summary.perplexity is not None and summary.perplexity_ratio is not None
    assert summary.perplexity.mean == pytest.approx(np.exp(-np.log(p).mean()))
    ratio = np.log(p) - np.log(q)
    assert summary.perplexity_ratio.mean == pytest.approx(np.exp(ratio.mean()))
    assert summary.perplexity_ratio.se == pytest.approx(np.exp(ratio.mean()) * ratio.std(ddof=1) / np.sqrt(15))


def test_agreement_and_flips() -> None:
    summary = summarize([STATS], tie=0.25)
    assert summary is not None
    flipped = P.argmax(-1) != Q.argmax(-1)
    margins = np.sort(EXPECTED, axis=-1)[..., -1] - np.sort(EXPECTED, axis=-1)[..., -2]
    assert summary.flips == flipped.sum() > summary.flips_in_ties > 0
    assert summary.flips_outside_ties == (flipped & (margins > 0.25)).sum()
    assert summary.top1.mean == pytest.approx(1 - flipped.mean())
    best = [set(x) for x in np.argsort(P.reshape(18, 11))[:, -5:].tolist()]
    theirs = [set(x) for x in np.argsort(Q.reshape(18, 11))[:, -5:].tolist()]
    assert summary.top5.mean == pytest.approx(np.mean([len(a & b) / 5 for a, b in zip(best, theirs, strict=True)]))


def test_groups() -> None:
    summary = summarize([STATS], tie=0.0)
    assert summary is not None
    assert [g.name for g in summary.by_position] == ["0", "1", "2", "3", "4", "5"]
    assert [g.name for g in summary.by_row] == ["row 0 of 3", "row 1 of 3", "row 2 of 3"]
    assert all(g.positions == 3 for g in summary.by_position) and all(g.positions == 6 for g in summary.by_row)
    error = np.sqrt(np.square(ACTUAL - EXPECTED)[1].mean() / np.square(EAGER - EXPECTED)[1].mean())
    assert summary.by_row[1].noise_ratio == pytest.approx(error)


def test_positions_are_grouped_into_sixteen_stretches() -> None:
    """Of a long row; each shape counts where it reaches."""
    long = drawn(1, 40)
    summary = summarize([STATS, long], tie=0.0)
    assert summary is not None
    names = [group.name for group in summary.by_position]
    assert (len(names), names[0], names[1], names[-1]) == (16, "0–1", "2–4", "37–39")
    assert [group.positions for group in summary.by_position][:3] == [8, 12, 5]
    assert sum(group.positions for group in summary.by_position) == 58


def test_rows_are_those_of_the_widest_batch() -> None:
    """In whatever order the shapes come; a batch of one has no other row to be mixed up with."""
    long, pair = drawn(1, 40), drawn(2, 3)
    for grid, rows in (([long, pair, STATS], 3), ([STATS, pair, long], 3), ([long, pair], 2), ([long], 0)):
        summary = summarize(grid, tie=0.0)
        assert summary is not None
        assert [group.name for group in summary.by_row] == [f"row {row} of {rows}" for row in range(rows)]
    summary = summarize([replace(STATS, each=None), long], tie=0.0)  # saved without a number per position
    assert summary is not None and summary.by_row == ()


def test_a_group_without_noise_has_an_infinite_ratio_unless_it_is_exact() -> None:
    for actual, ratio in ((ACTUAL, np.inf), (EXPECTED, 0.0)):
        summary = summarize([compare([Draw(ids=IDS, expected=EXPECTED, eager=EXPECTED, actual=actual)])], tie=0.0)
        assert summary is not None and {group.noise_ratio for group in summary.by_row} == {ratio}


@pytest.mark.parametrize("damaged", ["actual", "eager"])
def test_one_shape_that_is_not_finite_leaves_no_summary(damaged: str) -> None:
    broken = replace(STATS, **{damaged: replace(getattr(STATS, damaged), finite=False)})
    assert summarize([STATS, broken], tie=0.0) is None


def test_a_margin_of_exactly_the_tie_is_a_tie() -> None:
    expected, actual = np.array([[[1.0, 0.5, 0.0]]]), np.array([[[0.0, 0.5, 0.0]]])
    summary = summarize([compare([Draw(ids=IDS[:1, :1], expected=expected, eager=expected, actual=actual)])], tie=0.5)
    assert summary is not None and (summary.flips_in_ties, summary.flips_outside_ties) == (1, 0)


def test_a_single_token_has_no_next() -> None:
    one = compare([Draw(ids=IDS[:, :1], expected=EXPECTED[:, :1], eager=EAGER[:, :1], actual=ACTUAL[:, :1])])
    summary = summarize([one], tie=0.0)
    assert summary is not None and summary.perplexity is None and summary.dp_rms is None


def test_no_change_at_all_has_no_error_bar() -> None:
    same = summarize([compare([Draw(ids=IDS, expected=EXPECTED, eager=EAGER, actual=EXPECTED)])], tie=0.0)
    assert same is not None and same.dp_rms is not None and (same.dp_rms.mean, same.dp_rms.se) == (0.0, 0.0)


def test_mean_of_two_has_an_error_bar() -> None:
    assert mean_of(np.array([1.0, 2.0])).se == pytest.approx(0.5)


def test_mean_of_one_has_no_error_bar() -> None:
    assert (mean_of(np.array([3.0])).mean, mean_of(np.array([3.0])).se) == (3.0, 0.0)


def test_statistical_gates_judge_the_whole_grid() -> None:
    """Quantized weights: noise ratios do not matter, KL, top-1 and perplexity do; the last on real text only."""
    strict = judge(STATS, INT8.gates)
    assert not strict and [reason.split(" is ")[0].split(" agrees")[0] for reason in strict.reasons] == [
        "mean KL",
        "top-1",
    ]
    loose = changed_gates(INT8.gates, {"kl_mean": "9", "top1_agreement": "0.1"})
    assert judge(STATS, loose).passed
    text = judge(STATS, loose, real_text=True)
    assert not text and text.reasons[0].startswith("perplexity is")


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_a_perplexity_beyond_all_numbers_is_no_crash(factor: float) -> None:
    """Nor is a ratio of nothing."""
    huge = compare([Draw(ids=IDS, expected=EXPECTED, eager=EAGER, actual=EXPECTED * abs(factor))])
    if factor < 0:  # the checkpoint is the one that is never right
        huge = compare([Draw(ids=IDS, expected=EXPECTED * 1e4, eager=EXPECTED * 1e4, actual=EXPECTED)])
    with np.errstate(over="raise"):
        verdict = judge(huge, INT8.gates, real_text=True)
    assert not verdict and any(reason.startswith("perplexity is") for reason in verdict.reasons)
