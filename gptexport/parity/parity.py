"""Run eager, its float64 twin and the session users run side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn as nn
from gptexport_runtime import GPTExportError, Session

from gptexport.checkpoints import Checkpoint
from gptexport.dtypes import TORCH_DTYPES
from gptexport.parity.metrics import Logits, ShapeStats, compare
from gptexport.parity.tokens import Ids, Shape, TokenSource, draws_of
from gptexport.parity.verdict import GATES, Invariance, Verdict, judge, pool_noise


def check_parity(
    session: Session,
    checkpoint: Checkpoint,
    shapes: list[Shape],
    *,
    dtype: str = "float32",
    tokens: Ids | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> Verdict:
    """Is what `session` computes the checkpoint's model, but for rounding in `dtype`?

    Args:
        shapes: the (B,T) to compare at.
        tokens: real text as a row of ids; random ids otherwise.

    Raises:
        GPTExportError: the eager model does not run in float64, which the reference needs.
        InputError: a shape is longer than the model's context.
    """
    mismatch = _mismatch(session, checkpoint)
    if mismatch:
        return Verdict(dtype=dtype, gates=GATES[dtype], shapes=(), invariances=(), reasons=mismatch)
    source = TokenSource(checkpoint.vocab_size, tokens)
    eager = checkpoint.model
    reference = copy.deepcopy(eager).to(torch.float64)
    if dtype != "float32":
        eager = copy.deepcopy(eager).to(TORCH_DTYPES[dtype])

    stats: list[ShapeStats] = []
    for shape in shapes:
        progress("comparing at B,T = {},{}".format(*shape))
        batches = (source.batch(shape, seed) for seed in range(draws_of(shape)))
        stats.append(
            compare((_run_reference(reference, ids), _run(eager, ids), session.logits(ids)) for ids in batches)
        )
    del reference
    if not all(s.eager.finite for s in stats):
        return judge(stats, [], dtype)

    progress("checking causality and batch invariance")
    noise = pool_noise(stats, dtype)
    allowed = GATES[dtype].max_ratio * noise.max * max(s.expected_max for s in stats)
    return judge(stats, _invariances(session, source, shapes, allowed), dtype)


def _mismatch(session: Session, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Two models whose limits differ are not the same; no number is needed."""
    reasons = []
    for name in ("vocab_size", "block_size"):
        got, expected = getattr(session.config, name), getattr(checkpoint, name)
        if got is not None and got != expected:
            reasons.append(f"the artifact's {name} is {got}, the checkpoint's {expected}: this is not its export")
    return tuple(reasons)


def _run(model: nn.Module, ids: Ids) -> Logits:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(ids))
    wide = logits if logits.dtype == torch.float64 else logits.float()  # numpy has no bfloat16
    return np.asarray(wide)


def _run_reference(model: nn.Module, ids: Ids) -> Logits:
    try:
        return _run(model, ids)
    except RuntimeError as error:
        raise GPTExportError(
            f"the eager model does not run in float64, which the reference needs: {error}. "
            "Let tensors made inside forward take their dtype from the parameters."
        ) from error


def _invariances(session: Session, source: TokenSource, shapes: list[Shape], allowed: float) -> list[Invariance]:
    """A later token must not change an earlier logit, nor a neighbour or padding a row's."""
    T = max((T for B, T in shapes if B > 1), default=max(T for _, T in shapes))
    ids = source.batch((3, T), seed=1)
    base = session.logits(ids)
    changes = {"batch invariance": max(_change(base[row], session.logits(ids[row : row + 1])[0]) for row in range(3))}
    if T > 1:
        changed = []
        for start in sorted({1, T // 2, T - 1} - {0}):  # change everything from here on; what is before must stay
            other = ids.copy()
            other[:, start:] = (other[:, start:] + 1) % source.vocab_size
            changed.append(_change(base[:, :start], session.logits(other)[:, :start]))
        changes["causality"] = max(changed)
        ragged = [ids[0], ids[1, : T // 2], ids[2, :1]]
        padded = session.logits([row.tolist() for row in ragged])
        changes["padding invariance"] = max(
            _change(base[i, : len(row)], padded[i, : len(row)]) for i, row in enumerate(ragged)
        )
    return [Invariance(name=name, max_change=change, allowed=allowed) for name, change in changes.items()]


def _change(before: Logits, after: Logits) -> float:
    return float(np.abs(after - before).max())
