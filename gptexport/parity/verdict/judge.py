"""Numbers become a verdict: pass or fail, with every reason.

The yardstick is the model's own rounding noise, the error of eager PyTorch in the same dtype against float64
(FlashAttention's tests set the precedent: at most twice the error of the plain implementation). A fixed tolerance
cannot do this: a wrong GELU passes atol=1e-2, and a right export misses atol=1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from gptexport.parity.measure.invariances import Invariance, Invariant
from gptexport.parity.measure.measured import Measured
from gptexport.parity.measure.metrics import ShapeStats
from gptexport.parity.measure.noise import Noise, pool_noise
from gptexport.parity.verdict.statistics import Summary, summarize
from gptexport.precision import Gates

LUCKY = 2.0  # by how much a shape's own noise may be too small
EAGER_INSTEAD = "So the artifact was compared with eager itself, and its noise is that of perturbed eager runs"
LUCK = 10.0  # times a gate: beyond that no luck explains it


@dataclass(frozen=True, kw_only=True)
class ShapeVerdict:
    """One row of the table."""

    shape: tuple[int, int]
    noise_ratio: float
    max_ratio: float
    relative_rms: float
    eager_relative_rms: float
    max_abs: float
    kl_mean: float
    top1_agreement: float
    flips: int
    flips_outside_ties: int
    missed: tuple[str, ...]  # the gates that this shape misses, by name

    @property
    def passed(self) -> bool:
        return not self.missed

    @property
    def maybe_unlucky(self) -> bool:
        """It misses a ratio by little. A model that amplifies rounding at a few positions does that by luck."""
        ratios = {"noise_ratio": self.noise_ratio, "max_ratio": self.max_ratio}
        return bool(self.missed) and all(name in ratios and ratios[name] <= LUCK for name in self.missed)


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A figure over the whole grid that a gate is for."""

    gate: str  # its name
    value: float
    bound: float  # what the gate allows
    passed: bool
    reason: str  # a sentence, for a failure


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Truthy when the artifact is the same model as the checkpoint."""

    dtype: str
    gates: Gates
    shapes: tuple[ShapeVerdict, ...]
    invariances: tuple[Invariance, ...]
    reasons: tuple[str, ...]
    summary: Summary | None = None  # None where logits are not finite, or could not be compared
    statistics: tuple[Statistic, ...] = ()  # what is judged over the whole grid
    special: ShapeVerdict | None = None  # of rows of ids that models treat specially
    notes: tuple[str, ...] = ()  # what to know of the yardstick

    @property
    def passed(self) -> bool:
        return not self.reasons

    def __bool__(self) -> bool:
        return self.passed

    @property
    def doubtful(self) -> bool:
        """The float64 reference was not to be believed, and eager itself was the reference."""
        return bool(self.notes)

    @property
    def noise_ratio(self) -> float | None:
        """The worst over the grid; None where the two could not be compared at all."""
        return max((row.noise_ratio for row in self.shapes), default=None)

    def to_dict(self) -> dict[str, Any]:
        """For --json and the manifest. Not-finite numbers become null: JSON has none."""
        data = {**asdict(self), "passed": self.passed, "noise_ratio": self.noise_ratio}
        for row, verdict in zip(data["shapes"], self.shapes, strict=True):
            row["passed"] = verdict.passed
        if self.special is not None:
            data["special"]["passed"] = self.special.passed
        for row, invariance in zip(data["invariances"], self.invariances, strict=True):
            row |= {"passed": invariance.passed, "stored": invariance.kind is Invariant.WEIGHT}
        return jsonable(data)  # type: ignore[no-any-return]


def judge(measured: Measured, gates: Gates | None = None) -> Verdict:
    """Hold every shape against the gates, and say every reason to fail.

    Args:
        gates: those of the artifact's own precision where None.
    """
    gates = gates or measured.precision.gates
    invariances, stats = measured.invariances, measured.stats
    verdict = partial(Verdict, dtype=measured.precision.dtype, gates=gates, invariances=invariances)
    if measured.mismatch:
        return verdict(shapes=(), reasons=measured.mismatch)
    if not all(s.eager.finite for s in stats):
        dtype = measured.precision.dtype
        reason = f"the eager model itself gives NaN or Inf in {dtype}, so there is nothing to compare with"
        return verdict(shapes=(), reasons=(reason,))
    noise = pool_noise(stats, measured.precision)
    tie = tie_of(stats)
    rows = tuple(_judge_shape(s, noise, gates, tie) for s in stats)
    summary = summarize(stats, tie)
    statistics = _statistics(summary, stats, gates, measured.real_text)
    reasons = [*_reasons(rows, gates), *(each.reason for each in statistics if not each.passed)]
    special = None
    if measured.special is not None and measured.special.eager.finite:
        special = _judge_shape(measured.special, noise, gates, tie_of([*stats, measured.special]))
        ids = ", ".join(map(str, measured.special_ids))
        reasons += [f"on rows of the ids {ids}: {reason}" for reason in _reasons((special,), gates)]
    reasons += [_changed(i) for i in invariances if not i.passed]
    notes = tuple(dict.fromkeys(f"the yardstick is doubtful: {s.doubt}. {EAGER_INSTEAD}" for s in stats if s.doubt))
    verdict = partial(verdict, summary=summary, statistics=statistics, special=special)
    return verdict(shapes=rows, reasons=tuple(reasons), notes=notes[:1])


def _changed(i: Invariance) -> str:
    reason = f"{i.name}: what must not change did, by {i.max_change:.1e}; {i.allowed:.1e} is allowed"
    if i.eager_change is not None and i.eager_change > i.allowed:
        reason += f". The model's own logits change by {i.eager_change:.1e}: it is no causal model, or mixes its rows"
    return reason


def tie_of(stats: Sequence[ShapeStats]) -> float:
    """Two logits this near may change places: each errs by as much as eager's largest error."""
    return 2 * max(s.eager.max for s in stats)


def _allowed_tie(gates: Gates) -> float:
    """Logits of quantized weights this near may change places: to move them by d costs about d²/2 nats of `kl_mean`."""
    return float(np.sqrt(2 * gates.kl_mean)) if gates.statistical and gates.kl_mean is not None else 0.0


def _judge_shape(s: ShapeStats, noise: Noise, gates: Gates, tie: float) -> ShapeVerdict:
    tiny = 1e-100  # a model whose logits are all zero has no noise to divide by
    scale, peak = max(s.expected_rms, tiny), max(s.expected_max, tiny)
    ratio = s.actual.rms / _yardstick(s.eager.rms, noise.rms * scale, noise.floor * scale)
    max_ratio = s.actual.max / _yardstick(s.eager.max, noise.max * peak, noise.floor * peak)
    relative = s.actual.rms / scale
    outside = sum(margin > tie for margin in s.flip_margins)
    missed = ["finite"] * (not s.actual.finite)
    if s.actual.finite:
        kl_cap = None if gates.statistical or gates.kl_mean is None else gates.kl_mean * max(1.0, s.expected_spread**2)
        checks = {
            "noise_ratio": _within(ratio, gates.noise_ratio),
            "max_ratio": _within(max_ratio, gates.max_ratio),
            "relative_rms": _within(relative, gates.relative_rms),
            "kl_mean": _within(s.actual.kl_mean, kl_cap),
            "flips_outside_ties": _within(outside, gates.flips_outside_ties),
        }
        missed = [name for name, kept in checks.items() if not kept]
    return ShapeVerdict(
        shape=s.shape,
        noise_ratio=ratio,
        max_ratio=max_ratio,
        relative_rms=relative,
        eager_relative_rms=s.eager.rms / scale,
        max_abs=s.actual.max,
        kl_mean=s.actual.kl_mean,
        top1_agreement=s.top1_agreement,
        flips=len(s.flip_margins),
        flips_outside_ties=outside,
        missed=tuple(missed),
    )


def _yardstick(own: float, pooled: float, floor: float) -> float:
    """A shape's own noise; where that was lucky, up to LUCKY times as much if other shapes are as noisy."""
    return max(own, min(pooled, LUCKY * own), floor)


def _within(value: float, gate: float | None) -> bool:
    return gate is None or value <= gate  # NaN is not


def _reasons(rows: tuple[ShapeVerdict, ...], gates: Gates) -> list[str]:
    """One sentence for each gate that is missed anywhere, with its worst shape."""
    sentences: dict[str, Callable[[ShapeVerdict], str]] = {
        "finite": lambda _: "NaN or Inf in the logits",
        "noise_ratio": lambda row: f"RMS error is {row.noise_ratio:.3g} × eager's noise; at most {gates.noise_ratio:g}",
        "max_ratio": lambda row: f"largest error is {row.max_ratio:.3g} × eager's; at most {gates.max_ratio:g}",
        "relative_rms": lambda row: (
            f"relative RMS error is {row.relative_rms:.1e}; at most {gates.relative_rms:.0e}"
            + (
                f". Eager's own is {row.eager_relative_rms:.1e}, too much for a yardstick"
                if row.eager_relative_rms > (gates.relative_rms or 0.0)
                else ""
            )
        ),
        "kl_mean": lambda row: f"mean KL is {row.kl_mean:.1e}; at most {gates.kl_mean:.0e} × the logits' variance",
        "flips_outside_ties": lambda row: f"{row.flips_outside_ties} argmax flips that are not near-ties",
    }
    reasons = []
    for gate, sentence in sentences.items():
        missing = [row for row in rows if gate in row.missed]
        if missing:
            worst = max(missing, key=lambda row: float(getattr(row, gate, 0.0)))
            others = len(missing) - 1
            more = f", and {others} more shape{'s' if others > 1 else ''}" if others else ""
            where = "{}x{}".format(*worst.shape) + more
            reasons.append(f"{sentence(worst)} (at {where})")
    return reasons


def _statistics(
    summary: Summary | None, stats: Sequence[ShapeStats], gates: Gates, real_text: bool
) -> tuple[Statistic, ...]:
    """What is judged over the whole grid."""
    if summary is None:
        return ()
    found = []
    if gates.statistical and gates.kl_mean is not None:
        kl = summary.kl.mean
        kept, reason = _within(kl, gates.kl_mean), f"mean KL is {kl:.2g}; at most {gates.kl_mean:g}"
        found.append(Statistic(gate="kl_mean", value=kl, bound=gates.kl_mean, passed=kept, reason=reason))
    tie = _allowed_tie(gates)
    agreed = 1 - sum(margin > tie for s in stats for margin in s.flip_margins) / summary.positions
    if (least := gates.top1_agreement) is not None:
        but = f", or the two are within {tie:.2g}" if tie else ""
        reason = f"top-1 agrees at {agreed:.2%} of positions{but}; at least {least:.2%}"
        kept = agreed >= least
        found.append(Statistic(gate="top1_agreement", value=agreed, bound=least, passed=kept, reason=reason))
    ratio = summary.perplexity_ratio
    if (most := gates.perplexity_ratio) is not None and real_text and ratio is not None:
        worse = max(ratio.mean, 1 / ratio.mean if ratio.mean else np.inf)
        reason = f"perplexity is {ratio.mean:.4f} × the checkpoint's; at most {most:g}"
        kept = _within(worse, most)
        found.append(Statistic(gate="perplexity_ratio", value=ratio.mean, bound=most, passed=kept, reason=reason))
    return tuple(found)


def jsonable(value: Any) -> Any:
    """Tuples as lists, and null for what is not finite."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
