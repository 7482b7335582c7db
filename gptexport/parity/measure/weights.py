"""The weights where a graph stores them, each compared with the checkpoint's.

A grid of ids touches few rows of an embedding, and a bias that is a little off may drown in the noise: here nothing
is run, so nothing drowns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from gptexport.parity.measure.invariances import Invariance, Invariant
from gptexport.parity.measure.stored import StoredWeights
from gptexport.parity.names import short
from gptexport.precision import Precision

AT_ONCE = 4096  # rows
ROUNDING = 4  # times the dtype's epsilon


@dataclass(frozen=True)
class Row:
    """The row of a weight that differs most: by `change` times its RMS."""

    rows: int
    worst: int
    change: float


def compare_weights(model: nn.Module, graph: Path, precision: Precision) -> list[Invariance]:
    """No weight may differ by more than rounding explains: each embedding, and the worst of the others."""
    allowed = ROUNDING * precision.eps
    rows = worst_rows(model, graph, precision)
    found = [
        Invariance(kind=Invariant.WEIGHT, name=f"rows of {short(name)}", max_change=row.change, allowed=allowed)
        for name, row in rows.items()
    ]
    stored = StoredWeights(model, graph)
    changes: dict[str, float] = {}
    embeddings = {id(model.get_submodule(name).weight) for name in rows}
    for name, parameter in model.named_parameters():
        if id(parameter) not in embeddings:
            for _, tensor in stored.of(parameter):
                changes[name] = max(changes.get(name, 0.0), _change(tensor, parameter, precision))
    if changes:
        worst = max(changes, key=lambda name: changes[name])
        name = "other weights" if changes[worst] <= allowed else f"other weights ({short(worst)})"
        found.append(Invariance(kind=Invariant.WEIGHT, name=name, max_change=changes[worst], allowed=allowed))
    return found


def worst_rows(model: nn.Module, graph: Path, precision: Precision) -> dict[str, Row]:
    """The rows of every embedding, by its name, except those that the graph packs or does not have."""
    stored = StoredWeights(model, graph)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            for at, tensor in stored.of(module.weight):
                if any(node.op_type == "Gather" for node in stored.index.readers({at})):
                    found[name] = _worst(tensor, module.weight, precision)
    return found


def _change(stored: torch.Tensor, own: torch.Tensor, precision: Precision) -> float:
    """Which way round a square weight is read, running shows: here it may be either."""
    change = _worst(stored, own, precision).change
    is_square = stored.dim() == 2 and stored.shape[0] == stored.shape[1]
    return min(change, _worst(stored.T, own, precision).change) if is_square and change > 0 else change


def _worst(stored: torch.Tensor, own: torch.Tensor, precision: Precision) -> Row:
    """A vector is one row. What is the checkpoint's number is right, and so is that number rounded to the precision."""
    stored, own = (x.detach().reshape(-1, x.shape[-1] if x.dim() else 1) for x in (stored, own))
    changes = []
    for start in range(0, len(own), AT_ONCE):
        theirs, ours = (x[start : start + AT_ONCE].to(torch.float64) for x in (stored, own))
        rounded = ours.to(precision.torch_dtype).to(torch.float64)
        error = torch.minimum((theirs - ours).abs(), (theirs - rounded).abs())
        scale = torch.maximum(ours.square().mean(dim=1, keepdim=True).sqrt(), ours.abs()).clamp_min(1e-100)
        changes.append((error / scale).amax(dim=1))
    change = torch.cat(changes).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return Row(len(own), int(change.argmax()), float(change.max()))
