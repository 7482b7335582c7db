"""One shape of the grid: draw ids, run reference, eager and session on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch.nn as nn

from gptexport.casting import Cast
from gptexport.parity.measure.float64 import Perturbed
from gptexport.parity.measure.metrics import Draw, ErrorStats, Ids, Logits, ShapeStats, compare, same_kind
from gptexport.parity.measure.reference import run_eager, run_reference
from gptexport.parity.measure.shapes import Shape, draws_of
from gptexport.parity.measure.tokens import TokenSource
from gptexport.precision import Precision
from gptexport_runtime import Session

FURTHER_RUNS = 4  # of eager, each off by half a rounding
ROUNDINGS = 64  # eager's error in roundings of its dtype: more is not what a forward's rounding comes to by itself
FAR_BETTER = 8  # times as near to each other as to the reference


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What is compared. `intended`: NaN and Inf are the model's own, not those of damaged weights."""

    session: Session
    model: nn.Module  # the checkpoint's
    eager: Cast  # the same in the dtype of the artifact
    source: TokenSource
    precision: Precision
    intended: bool = True


def measure_shape(sides: Sides, shape: Shape) -> ShapeStats:
    """Compare all draws of a shape.

    The float64 reference is checked, not believed: where eager and the session agree with each other and not with it,
    the forward does something else in float64 than in the dtype that it was written for, and eager is the reference.
    """
    return measure_batches(sides, _batches(sides, shape, first_seed=0))


def measure_batches(sides: Sides, batches: list[Ids]) -> ShapeStats:
    """As `measure_shape`, of ids that are given: batches (B,T) of one shape."""
    expected = run_reference(sides.model, np.concatenate(batches))
    if expected is None:
        return _against_eager(sides, batches, "the model does not run in float64")
    stats = compare(_draws(sides, batches, expected), intended=sides.intended)
    doubt = _doubt(stats, sides.precision)
    if doubt is None and not stats.eager.finite and sides.intended:
        doubt = _other_kinds(sides, batches, expected)
    return stats if doubt is None else _against_eager(sides, batches, doubt)


def measure_again(sides: Sides, stats: ShapeStats, batches: list[Ids] | None = None) -> ShapeStats:
    """With the noise of several eager runs: a fault stays, luck does not.

    Args:
        stats: what was measured at first.
        batches: fresh ids of the same shape where None.
    """
    batches = batches or _batches(sides, stats.shape, first_seed=draws_of(stats.shape))
    if stats.doubt is not None:
        return _against_eager(sides, batches, stats.doubt)
    expected = run_reference(sides.model, np.concatenate(batches))
    if expected is None:  # it was not None on other ids
        return stats
    draws = list(_draws(sides, batches, expected))
    again = compare(draws, intended=sides.intended)
    errors = [again.eager]
    for seed in range(FURTHER_RUNS):
        with Perturbed(sides.precision.eps, seed, lookups=True):
            noisy = [replace(draw, eager=run_eager(sides.eager, draw.ids)) for draw in draws]
        errors.append(compare(noisy, intended=sides.intended).eager)
    return replace(again, eager=_pooled(errors))


def _against_eager(sides: Sides, batches: list[Ids], doubt: str) -> ShapeStats:
    """With eager as the reference, and the noise of eager runs each of whose operations is off by half a rounding."""
    draws = [
        Draw(ids=ids, expected=logits, eager=logits, actual=sides.session.logits(ids))
        for ids in batches
        for logits in [run_eager(sides.eager, ids)]
    ]
    errors, stats = [], None
    for seed in range(FURTHER_RUNS):
        with Perturbed(sides.precision.eps, seed):
            noisy = [replace(draw, eager=run_eager(sides.eager, draw.ids)) for draw in draws]
        stats = compare(noisy, intended=sides.intended)
        errors.append(stats.eager)
    assert stats is not None
    return replace(stats, eager=_pooled(errors), doubt=doubt)


def _doubt(stats: ShapeStats, precision: Precision) -> str | None:
    """Why the float64 reference is not to be believed; None where it is."""
    if precision.quantized or stats.agreement is None or not stats.expected_rms or not stats.eager.finite:
        return None
    eager, agreement = stats.eager.rms / stats.expected_rms, stats.agreement.rms / stats.expected_rms
    if eager <= ROUNDINGS * precision.eps or agreement * FAR_BETTER > eager:
        return None
    return (
        f"in float64 the forward gives other logits, {eager:.1e} relative RMS from eager PyTorch in {precision.dtype}, "
        f"where artifact and eager agree to {agreement:.1e}"
    )


def _other_kinds(sides: Sides, batches: list[Ids], expected: Logits) -> str | None:
    """As `_doubt`: NaN and Inf are elsewhere in float64, and the session has them where eager has them."""
    rows = len(batches[0])
    for number, ids in enumerate(batches):
        eager = run_eager(sides.eager, ids)
        reference = expected[number * rows : (number + 1) * rows]
        if not same_kind(reference, eager) and not same_kind(eager, sides.session.logits(ids)):
            return None
    return "in float64 the forward gives NaN or Inf at other places than eager PyTorch"


def _pooled(errors: list[ErrorStats]) -> ErrorStats:
    return ErrorStats(
        rms=float(np.sqrt(np.mean([e.rms**2 for e in errors]))),
        max=max(e.max for e in errors),
        kl_mean=float(np.mean([e.kl_mean for e in errors])),
        finite=all(e.finite for e in errors),
    )


def _batches(sides: Sides, shape: Shape, *, first_seed: int) -> list[Ids]:
    return [sides.source.batch(shape, first_seed + number) for number in range(draws_of(shape))]


def _draws(sides: Sides, batches: list[Ids], expected: Logits) -> Iterator[Draw]:
    """The reference has run all as one batch: in float64 it may."""
    rows = len(batches[0])
    for number, ids in enumerate(batches):
        reference = expected[number * rows : (number + 1) * rows]
        yield Draw(ids=ids, expected=reference, eager=run_eager(sides.eager, ids), actual=sides.session.logits(ids))
