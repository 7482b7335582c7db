"""Run eager, its float64 reference and the session users run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np

from gptexport.checkpoints import Checkpoint
from gptexport.parity.gates import GATES
from gptexport.parity.measure_shape import maybe_luck, measure_again, measure_shape
from gptexport.parity.measured import Measured
from gptexport.parity.metrics import Logits, ShapeStats
from gptexport.parity.reference import eager_in, on_device
from gptexport.parity.stored import compare_stored
from gptexport.parity.tokens import Ids, Shape, TokenSource
from gptexport.parity.verdict import Invariance, Verdict, pool_noise
from gptexport_runtime import Session


def check_parity(
    session: Session,
    checkpoint: Checkpoint,
    shapes: list[Shape],
    *,
    dtype: str = "float32",
    tokens: Ids | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> Verdict:
    """Is what `session` computes the checkpoint's model, but for rounding in `dtype`? As `measure_parity`."""
    return measure_parity(session, checkpoint, shapes, dtype=dtype, tokens=tokens, progress=progress).judge()


def measure_parity(
    session: Session,
    checkpoint: Checkpoint,
    shapes: list[Shape],
    *,
    dtype: str = "float32",
    gates: str | None = None,
    graph: Path | None = None,
    tokens: Ids | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> Measured:
    """Compare at every shape, and see whether what must not change a row changes it.

    Args:
        shapes: the (B,T) to compare at.
        dtype: of the artifact's arithmetic: eager runs in it too.
        gates: what the artifact has to keep, where that is not what `dtype` has to: "int8", "int4".
        graph: the .onnx that the session runs, so that the weights in it are compared too.
        tokens: real text as a row of ids; random ids otherwise.

    Raises:
        GPTExportError: the eager model does not run in float64, which the reference needs.
            Or the text is shorter than a shape.
        InputError: a shape is longer than the model's context.
    """
    measured = Measured(dtype=dtype, gates=gates or dtype, real_text=tokens is not None)
    mismatch = _mismatch(session, checkpoint)
    if mismatch:
        return replace(measured, mismatch=mismatch)
    source = TokenSource(checkpoint.predicted_ids, tokens)
    source.check(shapes)
    model = on_device(checkpoint.model, session.device)
    eager = eager_in(model, dtype)
    stats: list[ShapeStats] = []
    for number, shape in enumerate(shapes, start=1):
        progress("comparing at B,T = {},{} ({} of {})".format(*shape, number, len(shapes)))
        stats.append(measure_shape(session, model, eager, source, shape))
    measured = replace(measured, stats=tuple(stats))
    if not all(s.eager.finite and s.actual.finite for s in stats):
        return measured  # NaN is its own reason

    def again(shape: Shape) -> ShapeStats:
        progress("once more at B,T = {},{}, on other ids: little is amiss".format(*shape))
        return measure_again(session, model, eager, source, shape, dtype)

    measured = _without_luck(measured, again)
    progress("checking causality and batch invariance")
    allowed = _allowed(measured.stats, measured)
    invariances = _invariances(session, source, shapes, allowed)
    if graph is not None and not GATES[measured.gates].statistical:
        invariances += compare_stored(checkpoint.model, graph, dtype)
    return replace(measured, invariances=tuple(invariances))


def _without_luck(measured: Measured, again: Callable[[Shape], ShapeStats]) -> Measured:
    """Shapes that miss a ratio by little are measured again, and that counts."""
    if GATES[measured.gates].statistical or not measured.stats:
        return measured
    rows = measured.judge().shapes
    stats = [again(s.shape) if maybe_luck(row) else s for s, row in zip(measured.stats, rows, strict=True)]
    return replace(measured, stats=tuple(stats))


def _mismatch(session: Session, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Two models whose limits differ are not the same; no number is needed."""
    reasons = []
    for name in ("vocab_size", "block_size"):
        got, expected = getattr(session.config, name), getattr(checkpoint, name)
        if got is not None and got != expected:
            reasons.append(f"the artifact's {name} is {got}, the checkpoint's {expected}: this is not its export")
    return tuple(reasons)


def _allowed(stats: Sequence[ShapeStats], measured: Measured) -> float:
    """How far rounding may move a logit. Quantized activations share a scale, so there a neighbour moves it too."""
    if GATES[measured.gates].statistical:
        return 4 * max(s.actual.max for s in stats)  # two errors of other ids, each as large as twice the largest seen
    noise = pool_noise(stats, measured.dtype)
    return (GATES[measured.gates].max_ratio or 1.0) * noise.max * max(s.expected_max for s in stats)


def _invariances(session: Session, source: TokenSource, shapes: list[Shape], allowed: float) -> list[Invariance]:
    """A later token must not change an earlier logit, nor a neighbour or padding a row's."""
    T = max((T for B, T in shapes if B > 1), default=max(T for _, T in shapes))
    B = next(B for B in (3, *(B for B, t in shapes if t == T)) if _takes(session, B, T))
    ids = source.batch((B, T), seed=1)
    base = session.logits(ids)
    changes = {}
    if B > 1 and _takes(session, 1, T):
        alone = [session.logits(ids[row : row + 1])[0] for row in range(B)]
        changes["batch invariance"] = max(_change(*pair) for pair in zip(base, alone, strict=True))
    if T > 1:
        changed = []
        for start in sorted({1, T // 2, T - 1} - {0}):  # change everything from here on; what is before must stay
            other = ids.copy()
            other[:, start:] = (other[:, start:] + 1) % source.vocab_size
            changed.append(_change(base[:, :start], session.logits(other)[:, :start]))
        changes["causality"] = max(changed)
    if T > 1 and B > 1:
        ragged = [row[:length] for row, length in zip(ids, cycle([T, T // 2, 1]), strict=False)]
        padded = session.logits([row.tolist() for row in ragged])
        changes["padding invariance"] = max(
            _change(base[i, : len(row)], padded[i, : len(row)]) for i, row in enumerate(ragged)
        )
    return [Invariance(name=name, max_change=change, allowed=allowed) for name, change in changes.items()]


def _takes(session: Session, B: int, T: int) -> bool:
    """An engine only takes what is within a profile."""
    return session.engine is None or any(profile.takes(B, T) for profile in session.engine.profiles)


def _change(before: Logits, after: Logits) -> float:
    return float(np.abs(after - before).max())
