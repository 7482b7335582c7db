"""Where in a tensor the error is: what can be said of a fault that no suspect explains."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def symptom(actual: torch.Tensor, expected: torch.Tensor, noise_max: float, *, n_head: int | None = None) -> str | None:
    """`only in channel 7`, `only in head 1`, `only at positions from 5 on`; None where it is everywhere.

    Args:
        noise_max: what the largest error may be by rounding alone.
        n_head: where the last axis is made of heads.
    """
    if not expected.is_floating_point():
        return None
    wrong = ~((actual.to(torch.float64) - expected.to(torch.float64)).abs() <= 4 * noise_max)  # NaN is wrong
    if wrong.dim() < 2 or not wrong.any():
        return None
    channels = wrong.flatten(0, -2).any(dim=0)
    if n_head and len(channels) % n_head == 0 and n_head > 1:
        heads = _indices(channels.view(n_head, -1).any(dim=1))
        if len(heads) < n_head:
            return "only in " + _list("head", heads)
    count = int(channels.sum())
    if count <= max(1, len(channels) // 8):
        return "only in " + _list("channel", _indices(channels))
    positions = wrong.any(dim=-1)
    positions = positions.flatten(0, -2).any(dim=0) if positions.dim() > 1 else positions
    found = _indices(positions)
    T = len(positions)
    if found == list(range(found[0], T)) and found[0] > 0:
        return f"only at positions from {found[0]} on" if found[0] < T - 1 else f"only at position {T - 1}, the last"
    if len(found) <= T // 4 or len(found) == 1 < T:
        return "only at " + _list("position", found)
    return None


def only_head(actual: torch.Tensor, expected: torch.Tensor, noise_max: float, n_head: int) -> int | None:
    """The one head that is wrong, if it is one."""
    wrong = ~((actual.to(torch.float64) - expected.to(torch.float64)).abs() <= 4 * noise_max)
    heads = _indices(wrong.reshape(-1, n_head, wrong.shape[-1] // n_head).any(dim=-1).any(dim=0))
    return heads[0] if len(heads) == 1 else None


def difference(theirs: torch.Tensor, ours: torch.Tensor) -> str:
    """How two tensors of weights differ."""
    differ = ~(theirs.to(torch.float64) == ours.to(torch.float64))
    count = int(differ.sum())
    if not bool(theirs.isfinite().all()):
        return "NaN or Inf among them"
    if count == 0:
        return "none differs"
    if count == 1:
        where = tuple(int(i) for i in differ.nonzero()[0])
        by = float(theirs[where].double() - ours[where].double())
        return f"1 of {ours.numel()} differs, [{', '.join(map(str, where))}] by {by:+.3g}"
    if ours.dim() == 2:
        rows = _indices(differ.any(dim=1))
        if len(rows) <= 4 < len(differ):
            return _list("row", rows) + (" differs" if len(rows) == 1 else " differ")
    relative = float((theirs.double() - ours.double()).norm() / ours.double().norm().clamp_min(1e-300))
    return f"{count} of {ours.numel()} differ, by {relative:.1e} relative"


def _indices(mask: torch.Tensor) -> list[int]:
    return [int(i) for i in mask.nonzero().flatten()]


def _list(word: str, items: Sequence[int]) -> str:
    shown = ", ".join(map(str, items[:4])) + (", …" if len(items) > 4 else "")
    return f"{word} {shown}" if len(items) == 1 else f"{word}s {shown}"
