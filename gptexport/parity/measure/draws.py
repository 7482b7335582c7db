"""One shape of the grid: draw ids, run reference, eager and session on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch.nn as nn

from gptexport.parity.measure.metrics import Draw, ErrorStats, Ids, Logits, ShapeStats, compare
from gptexport.parity.measure.reference import jittered, run, run_reference
from gptexport.parity.measure.shapes import Shape, draws_of
from gptexport.parity.measure.tokens import TokenSource
from gptexport.precision import Precision
from gptexport_runtime import Session

JITTERS = 4  # further eager runs


def measure_shape(
    session: Session, model: nn.Module, eager: nn.Module, source: TokenSource, shape: Shape
) -> ShapeStats:
    """Compare all draws of a shape, one in memory at a time."""
    draws = _runs(session, model, source, shape, first_seed=0)
    return compare(Draw(ids=i, expected=e, eager=run(eager, i), actual=a) for i, e, a in draws)


def measure_again(
    session: Session, model: nn.Module, eager: nn.Module, source: TokenSource, shape: Shape, precision: Precision
) -> ShapeStats:
    """On fresh ids, with the noise of several eager runs: a fault stays, luck does not."""
    draws = list(_runs(session, model, source, shape, first_seed=draws_of(shape)))
    stats = compare(Draw(ids=i, expected=e, eager=run(eager, i), actual=a) for i, e, a in draws)
    errors = [stats.eager]
    for seed in range(JITTERS):
        with jittered(eager, precision.eps, seed):
            noisy = [Draw(ids=i, expected=e, eager=run(eager, i), actual=a) for i, e, a in draws]
        errors.append(compare(noisy).eager)
    return replace(stats, eager=_pooled(errors))


def _pooled(errors: list[ErrorStats]) -> ErrorStats:
    return ErrorStats(
        rms=float(np.sqrt(np.mean([e.rms**2 for e in errors]))),
        max=max(e.max for e in errors),
        kl_mean=float(np.mean([e.kl_mean for e in errors])),
        finite=all(e.finite for e in errors),
    )


def _runs(
    session: Session, model: nn.Module, source: TokenSource, shape: Shape, *, first_seed: int
) -> Iterator[tuple[Ids, Logits, Logits]]:
    """Ids, the reference's logits and the session's. The reference runs all as one batch: in float64 it may."""
    batches = [source.batch(shape, first_seed + number) for number in range(draws_of(shape))]
    expected = run_reference(model, np.concatenate(batches))
    for number, ids in enumerate(batches):
        rows = slice(number * len(ids), (number + 1) * len(ids))
        yield ids, expected[rows], session.logits(ids)
