"""The yardstick: how far eager PyTorch itself is from float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptexport.parity.measure.metrics import ShapeStats
from gptexport.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Eager's error over the whole grid, relative to the logits: one lucky shape must not raise an alarm."""

    rms: float
    max: float
    floor: float  # what rounding a perfect result to the dtype would do


def pool_noise(stats: Sequence[ShapeStats], precision: Precision) -> Noise:
    """The noise of all shapes together, by their number of positions."""
    square = sum(s.eager.rms**2 * s.positions for s in stats)
    expected = sum(s.expected_rms**2 * s.positions for s in stats)
    relative = float(np.sqrt(square / expected)) if expected else 0.0
    peak = max(s.expected_max for s in stats)
    relative_max = max(s.eager.max for s in stats) / peak if peak else 0.0
    floor = precision.eps / 2
    return Noise(rms=max(relative, floor), max=max(relative_max, floor), floor=floor)


def allowed_change(stats: Sequence[ShapeStats], precision: Precision) -> float:
    """How far rounding may move a logit. Quantized activations share a scale, so there a neighbour moves it too."""
    if precision.gates.statistical:
        return 4 * max(s.actual.max for s in stats)  # two errors of other ids, each as large as twice the largest seen
    noise = pool_noise(stats, precision)
    return (precision.gates.max_ratio or 1.0) * noise.max * max(s.expected_max for s in stats)
