"""From numbers to a verdict: each gate misses alone, and says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gptexport.parity.measure.invariances import Invariance, Invariant
from gptexport.parity.measure.measured import Measured
from gptexport.parity.measure.metrics import Draw, ErrorStats, ShapeStats, compare
from gptexport.parity.measure.noise import pool_noise
from gptexport.parity.verdict import judge as module
from gptexport.parity.verdict.judge import Verdict
from gptexport.precision import INT8, PRECISIONS, dtypes

EAGER = ErrorStats(rms=1e-6, max=5e-6, kl_mean=1e-12, finite=True)
GOOD = ShapeStats(
    shape=(3, 17),
    positions=51,
    expected_rms=1.0,
    expected_max=4.0,
    expected_spread=1.0,
    eager=EAGER,
    actual=EAGER,
    flip_margins=(),
)
KEPT = Invariance(kind=Invariant.CAUSALITY, name="causality", max_change=1e-6, allowed=2e-5)


def judge(stats: list[ShapeStats], invariances: list[Invariance], dtype: str, **more: Any) -> Verdict:
    measured = Measured(
        precision=PRECISIONS[dtype], real_text=False, stats=tuple(stats), invariances=tuple(invariances), **more
    )
    return module.judge(measured)


def missed(stats: ShapeStats, dtype: str = "float32") -> tuple[str, ...]:
    verdict = judge([stats], [KEPT], dtype)
    assert bool(verdict) == verdict.passed == (not verdict.reasons)
    assert verdict.passed == verdict.shapes[0].passed
    return verdict.shapes[0].missed


def with_actual(**changes: Any) -> ShapeStats:
    return replace(GOOD, actual=replace(EAGER, **changes))


def test_as_wrong_as_eager_is_right() -> None:
    assert missed(GOOD) == ()
    assert judge([GOOD], [KEPT], "float32").noise_ratio == 1.0


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"rms": 1.99e-6}, None),
        ({"rms": 2.01e-6}, "noise_ratio"),
        ({"max": 1.99e-5}, None),
        ({"max": 2.01e-5}, "max_ratio"),
        ({"kl_mean": 0.9e-8}, None),
        ({"kl_mean": 1.1e-8}, "kl_mean"),
    ],
)
def test_each_gate_alone(changes: dict[str, float], gate: str | None) -> None:
    assert missed(with_actual(**changes)) == ((gate,) if gate else ())


def test_the_cap_binds_where_eager_itself_is_too_noisy() -> None:
    """As wrong as eager is no evidence if eager runs in TF32 by mistake."""
    noisy = replace(EAGER, rms=3e-4, max=1e-3)
    assert missed(replace(GOOD, eager=noisy, actual=noisy)) == ("relative_rms",)
    assert missed(replace(GOOD, eager=noisy, actual=noisy), "float16") == ()


def test_the_kl_cap_grows_with_the_spread() -> None:
    """Errors are relative to the logits, and KL goes with their square."""
    assert missed(with_actual(kl_mean=9e-8)) == ("kl_mean",)
    assert missed(replace(with_actual(kl_mean=9e-8), expected_spread=10.0)) == ()
    assert missed(replace(with_actual(kl_mean=1.1e-6), expected_spread=10.0)) == ("kl_mean",)
    assert missed(replace(with_actual(kl_mean=9e-9), expected_spread=0.01)) == ()


def test_a_flip_in_a_tie_is_rounding_and_any_other_a_fault() -> None:
    """eager's largest error is 5e-6: two logits within 1e-5 of each other may change places."""
    near, far = replace(GOOD, flip_margins=(0.9e-5, 2 * EAGER.max)), replace(GOOD, flip_margins=(0.9e-5, 1.1e-5))
    assert missed(near) == ()
    assert missed(far) == ("flips_outside_ties",)
    row = judge([far], [KEPT], "float32").shapes[0]
    assert (row.flips, row.flips_outside_ties) == (2, 1)
    noisier = replace(GOOD, eager=replace(EAGER, max=6e-6))
    assert judge([far, noisier], [KEPT], "float32").passed, "eager's largest error anywhere"


@pytest.mark.parametrize("dtype", dtypes())
def test_nan_fails_and_is_the_only_reason(dtype: str) -> None:
    broken = replace(GOOD, actual=ErrorStats(rms=np.inf, max=np.inf, kl_mean=np.inf, finite=False))
    verdict = judge([GOOD, broken], [KEPT], dtype)
    assert not verdict
    assert verdict.reasons == ("NaN or Inf in the logits (at 3x17)",)
    data = verdict.to_dict()
    assert data["noise_ratio"] is data["shapes"][1]["noise_ratio"] is None, "infinity is no JSON"
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_eager_with_nan_fails_and_blames_eager() -> None:
    broken = replace(GOOD, eager=replace(EAGER, finite=False))
    verdict = judge([broken], [], "float16")
    assert not verdict and "the eager model itself gives NaN or Inf in float16" in verdict.reasons[0]
    assert judge([GOOD, broken], [], "float16").reasons == verdict.reasons


@pytest.mark.parametrize("change", [2.1e-5, np.inf, np.nan])
def test_what_must_not_change(change: float) -> None:
    verdict = judge([GOOD], [replace(KEPT, max_change=change)], "float32")
    assert not verdict
    assert "causality: what must not change did" in verdict.reasons[0]
    assert verdict.to_dict()["invariances"][0]["passed"] is False


def test_one_lucky_shape_raises_no_alarm() -> None:
    """Where eager happens to be nearer the truth than elsewhere, the whole grid's noise counts, up to twice its own."""
    lucky = replace(GOOD, shape=(1, 1), positions=1, eager=replace(EAGER, rms=3e-7, max=1.5e-6))
    assert judge([lucky, GOOD], [], "float32").passed
    assert not judge([lucky], [], "float32").passed
    luckier = replace(lucky, eager=replace(EAGER, rms=2e-7, max=1.5e-6))
    assert not judge([luckier, GOOD], [], "float32").passed


def test_a_noisy_shape_does_not_hide_a_fault_at_another() -> None:
    """Noise may grow with T: the yardstick of a short row is not that of a long one."""
    long = replace(
        GOOD, shape=(1, 1024), positions=1024, eager=replace(EAGER, rms=1e-5), actual=replace(EAGER, rms=1e-5)
    )
    assert judge([GOOD, long], [], "float32").passed
    assert not judge([with_actual(rms=6e-6), long], [], "float32").passed


def test_the_noise_is_never_below_rounding_the_result() -> None:
    exact = replace(GOOD, eager=replace(EAGER, rms=0.0, max=0.0))
    for precision in PRECISIONS.values():
        noise = pool_noise([exact], precision)
        assert noise.rms == noise.max == precision.eps / 2


def test_logits_that_are_all_zero() -> None:
    zero = replace(GOOD, expected_rms=0.0, expected_max=0.0, expected_spread=0.0)
    still = replace(EAGER, rms=0.0, max=0.0, kl_mean=0.0)
    assert judge([replace(zero, eager=still, actual=still)], [], "float32").passed
    assert not judge([replace(zero, eager=still, actual=EAGER)], [], "float32").passed


def test_a_reason_names_the_worst_shape_and_counts_the_others() -> None:
    rows = [replace(with_actual(rms=rms), shape=(1, T)) for T, rms in ((1, 3e-6), (2, 9e-6), (3, 1e-6), (4, 4e-6))]
    verdict = judge(rows, [], "float32")
    assert verdict.reasons == ("RMS error is 9 × eager's noise; at most 2 (at 1x2, and 2 more shapes)",)

    assert judge(rows[:3], [], "float32").reasons[0].endswith("(at 1x2, and 1 more shape)")


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_scale_of_the_logits_changes_nothing(factor: float) -> None:
    """What is held against a gate is relative, wherever the yardstick comes from."""
    lucky = replace(GOOD, eager=replace(EAGER, rms=3e-7, max=1.5e-6))
    exact = replace(GOOD, eager=replace(EAGER, rms=0.0, max=0.0))
    rounded = replace(GOOD, eager=replace(EAGER, rms=0.0, max=0.0), actual=replace(EAGER, rms=5e-8, max=2e-7))
    for grid in ([lucky, GOOD], [exact], [rounded]):
        for row, other in zip(
            judge(grid, [], "float32").shapes,
            judge([scaled(s, factor) for s in grid], [], "float32").shapes,
            strict=True,
        ):
            for name in ("noise_ratio", "max_ratio", "relative_rms", "eager_relative_rms"):
                assert getattr(other, name) == pytest.approx(getattr(row, name), rel=1e-12), name


def scaled(s: ShapeStats, factor: float) -> ShapeStats:
    def error(of: ErrorStats) -> ErrorStats:
        return replace(of, rms=of.rms * factor, max=of.max * factor)

    expected_rms, expected_max = s.expected_rms * factor, s.expected_max * factor
    eager, actual = error(s.eager), error(s.actual)
    return replace(s, expected_rms=expected_rms, expected_max=expected_max, eager=eager, actual=actual)


@pytest.mark.parametrize(
    ("gates", "ratio", "unlucky"),
    [
        ((), 1.0, False),
        (("noise_ratio",), 10.0, True),
        (("noise_ratio",), 10.5, False),
        (("noise_ratio", "max_ratio"), 3.0, True),
        (("noise_ratio", "kl_mean"), 3.0, False),
        (("flips_outside_ties",), 3.0, False),
    ],
)
def test_luck_explains_a_ratio_that_is_missed_by_little(gates: tuple[str, ...], ratio: float, unlucky: bool) -> None:
    row = replace(judge([GOOD], [], "float32").shapes[0], missed=gates, noise_ratio=ratio, max_ratio=ratio)
    assert row.maybe_unlucky is unlucky


def test_what_cannot_be_compared_fails_and_says_why() -> None:
    verdict = judge([GOOD], [], "float32", mismatch=("another vocabulary",))
    assert (verdict.reasons, verdict.shapes, verdict.noise_ratio) == (("another vocabulary",), (), None)


def test_special_ids_are_held_against_the_gates() -> None:
    verdict = judge([GOOD], [], "float32", special=with_actual(rms=9e-6), special_ids=(0, 50256))
    assert verdict.reasons == ("on rows of the ids 0, 50256: RMS error is 9 × eager's noise; at most 2 (at 3x17)",)
    assert verdict.to_dict()["special"]["passed"] is False
    fine = judge([GOOD], [], "float32", special=GOOD, special_ids=(0,))
    assert fine.passed and fine.to_dict()["special"]["passed"] is True
    unlike = replace(with_actual(rms=9e-6), eager=replace(EAGER, finite=False))
    assert judge([GOOD], [], "float32", special=unlike, special_ids=(0,)).passed, "the model's own ids of no meaning"


def test_a_model_that_is_not_causal_is_blamed_itself() -> None:
    wrong = replace(KEPT, max_change=1.0)
    blamed = judge([GOOD], [replace(wrong, eager_change=0.5)], "float32").reasons[0]
    assert blamed.endswith("The model's own logits change by 5.0e-01: it is no causal model, or mixes its rows")
    assert "own logits" not in judge([GOOD], [replace(wrong, eager_change=KEPT.allowed)], "float32").reasons[0]


def test_a_doubt_is_noted_once() -> None:
    doubtful = [replace(GOOD, doubt=doubt) for doubt in ("it overflows", "it overflows", "it drifts")]
    verdict = judge(doubtful, [], "float32")
    assert verdict.passed and verdict.doubtful and len(verdict.notes) == 1
    assert verdict.notes[0].startswith("the yardstick is doubtful: it overflows. So the artifact")


def test_a_cap_of_nothing_is_more_than_eager_keeps() -> None:
    measured = Measured(precision=PRECISIONS["float32"], real_text=False, stats=(GOOD,))
    verdict = module.judge(measured, replace(PRECISIONS["float32"].gates, relative_rms=0.0))
    assert "Eager's own is 1.0e-06, too much for a yardstick" in verdict.reasons[0]


def test_statistics_that_just_keep_a_gate() -> None:
    """Half of the argmaxes agree; the token that came is twice as probable, which is as far from the checkpoint."""
    expected, actual = np.array([[[np.log(3), 0.0], [1.0, 0.0]]]), np.array([[[0.0, 0.0], [0.0, 1.0]]])
    draw = Draw(ids=np.array([[0, 1]]), expected=expected, eager=expected, actual=actual)
    text = Measured(precision=INT8, real_text=True, stats=(compare([draw]),))
    gates = replace(INT8.gates, kl_mean=None, noise_ratio=None, max_ratio=None, top1_agreement=0.5)
    assert module.judge(text, replace(gates, perplexity_ratio=2.01)).reasons == ()
    [reason] = module.judge(text, replace(gates, perplexity_ratio=1.9)).reasons
    assert reason == "perplexity is 0.5000 × the checkpoint's; at most 1.9"
    [reason] = module.judge(text, replace(gates, top1_agreement=0.51, perplexity_ratio=None)).reasons
    assert reason == "top-1 agrees at 50.00% of positions; at least 51.00%"


def test_flips_that_the_allowed_divergence_explains_are_no_disagreement() -> None:
    """Two flips: between logits 0.5 apart, and 1 apart. 0.32 nats allow logits within 0.8 to change places."""
    expected, actual = np.array([[[0.5, 0.0], [1.0, 0.0]]]), np.array([[[0.0, 0.5], [0.0, 1.0]]])
    draw = Draw(ids=np.array([[0, 1]]), expected=expected, eager=expected, actual=actual)
    measured = Measured(precision=INT8, real_text=False, stats=(compare([draw]),))
    gates = replace(INT8.gates, kl_mean=0.32, top1_agreement=0.5)
    assert module.judge(measured, gates).reasons == ()
    [reason] = module.judge(measured, replace(gates, top1_agreement=0.51)).reasons
    assert reason == "top-1 agrees at 50.00% of positions, or the two are within 0.8; at least 51.00%"
    [reason] = module.judge(measured, replace(gates, kl_mean=None)).reasons
    assert reason == "top-1 agrees at 0.00% of positions; at least 50.00%"


def test_verdict_to_dict_is_what_json_holds() -> None:
    stored = replace(KEPT, kind=Invariant.WEIGHT)
    data = judge([GOOD], [KEPT, stored], "float32").to_dict()
    assert [row["stored"] for row in data["invariances"]] == [False, True]
    assert data["passed"] is True and data["noise_ratio"] == 1.0 and data["dtype"] == "float32"
    assert data["shapes"][0]["passed"] is True and data["invariances"][0]["passed"] is True
